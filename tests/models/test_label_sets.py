"""Several labels for each video, such as EPIC-Kitchens' verb and noun: config, loss, training, pipeline; and one label."""

import json

import numpy as np
import pytest
import torch
from builders import tiny_config
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from torch.utils.data import Dataset
from transformers import pipeline

from transformers_lvmae import (
    LVMAEClassificationArguments,
    LVMAEClassificationTrainer,
    LVMAEConfig,
    LVMAEForVideoClassification,
    LVMAEVideoProcessor,
)
from transformers_lvmae.evaluation.accuracy import topk_accuracies
from transformers_lvmae.models.video_io import write_video


NAMES = {"verb": ["take", "put"], "noun": ["tap", "spoon", "plate"]}
CLIPS = (8, 3, 32, 32)


def make_model(**overrides) -> LVMAEForVideoClassification:
    torch.manual_seed(0)
    fields = {"tube_drop_ratio": 0.0, **LVMAEConfig.label_fields(NAMES), **overrides}
    config = LVMAEConfig(**{**tiny_config().to_dict(), **fields})
    return LVMAEForVideoClassification(config).eval()


class RandomClips(Dataset):
    """Clips and labels of a seed."""

    def __init__(self, length: int):
        generator = torch.Generator().manual_seed(0)
        self.clips = torch.randn(length, *CLIPS, generator=generator)
        self.labels = torch.stack([torch.randint(n, (length,), generator=generator) for n in (2, 3)], dim=1).tolist()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values_videos": self.clips[index], "labels": self.labels[index]}


def make_trainer(folder, length=8, **options) -> LVMAEClassificationTrainer:
    options = {
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
    } | options
    arguments = LVMAEClassificationArguments(
        output_dir=str(folder), report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, **options
    )
    clips = RandomClips(length)
    return LVMAEClassificationTrainer(make_model(), arguments, train_dataset=clips, eval_dataset=clips)


def test_fields_of_one_label_are_those_of_any_classifier():
    assert LVMAEConfig.label_fields({"label": ["run", "jump"]}) == {
        "id2label": {0: "run", 1: "jump"},
        "label2id": {"run": 0, "jump": 1},
    }
    config = LVMAEConfig(num_labels=2)
    assert config.label_slices == {}
    assert config.label_sets is None


def test_label_sets_survive_json_in_their_order(tmp_path):
    """Keys are sorted in a saved config; the order is that of the columns all the same."""
    model = make_model()
    assert list(model.config.label_slices.items()) == [("verb", slice(0, 2)), ("noun", slice(2, 5))]
    model.save_pretrained(tmp_path)
    assert list(json.loads((tmp_path / "config.json").read_text())["label_sets"]) == ["noun", "verb"]
    loaded = LVMAEForVideoClassification.from_pretrained(tmp_path)
    assert list(loaded.config.label_slices.items()) == list(model.config.label_slices.items())
    assert loaded.config.id2label == {
        0: "verb: take",
        1: "verb: put",
        2: "noun: tap",
        3: "noun: spoon",
        4: "noun: plate",
    }
    clips = torch.randn(2, *CLIPS)
    assert torch.equal(loaded.eval()(clips).logits, model(clips).logits)


def test_a_pre_trained_model_takes_label_sets(tmp_path):
    """As scripts/finetune.py loads one: other classes than the folder's config has."""
    LVMAEForVideoClassification(tiny_config(num_labels=3)).lvmae.save_pretrained(tmp_path)
    model = LVMAEForVideoClassification.from_pretrained(tmp_path, **LVMAEConfig.label_fields(NAMES))
    assert model.classifier.out_features == model.config.num_labels == 5
    assert model.config.label_slices == make_model().config.label_slices


def test_logits_are_log_probabilities_within_each_set():
    model, clips = make_model(), torch.randn(3, *CLIPS)
    logits = model(clips).logits
    single = LVMAEForVideoClassification(LVMAEConfig(**{**model.config.to_dict(), "label_sets": None})).eval()
    single.load_state_dict(model.state_dict())
    raw = single(clips).logits
    expected = torch.cat([raw[:, :2].softmax(-1).log(), raw[:, 2:].softmax(-1).log()], dim=-1)
    torch.testing.assert_close(logits, expected)


def test_the_loss_is_the_mean_of_both_cross_entropies():
    model, clips = make_model(), torch.randn(3, *CLIPS)
    labels = torch.tensor([[0, 2], [1, 0], [1, 1]])
    output = model(clips, labels=labels)
    cross_entropy = nn.functional.cross_entropy
    parts = cross_entropy(output.logits[:, :2], labels[:, 0]), cross_entropy(output.logits[:, 2:], labels[:, 1])
    torch.testing.assert_close(output.loss, (parts[0] + parts[1]) / 2)


def test_accumulated_small_batches_equal_one_large_batch(tmp_path):
    """Plain gradient descent, so that a wrongly scaled step cannot hide behind Adam."""
    one = make_trainer(tmp_path, per_device_train_batch_size=4)
    two = make_trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.train(), two.train()
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert max((one.model.state_dict()[name] - value).abs().max() for name, value in before.items()) > 1e-4


def test_the_trainer_reports_every_set_and_the_action(tmp_path):
    """Also with an incomplete last batch: seven clips, two at a time."""
    trainer = make_trainer(tmp_path, length=7, per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    clips = trainer.eval_dataset
    with torch.no_grad():
        logits = trainer.model(clips.clips).logits.numpy()
    expected = topk_accuracies(logits, np.asarray(clips.labels), {"verb": [0, 2], "noun": [2, 5]})
    assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected)
    assert expected["action_accuracy"] < expected["noun_top5_accuracy"] == 1.0


def test_the_pipeline_gives_each_class_its_share(tmp_path):
    """All classes of all sets, each with its probability within its set, divided by the number of sets."""
    model = make_model()
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", frames)
    processor = LVMAEVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    classify = pipeline("video-classification", model=model, video_processor=processor)
    answers = {answer["label"]: answer["score"] for answer in classify(str(tmp_path / "clip.mp4"), top_k=5)}
    assert set(answers) == set(model.config.id2label.values())
    for name, classes in NAMES.items():
        assert sum(answers[f"{name}: {word}"] for word in classes) == pytest.approx(0.5, abs=1e-6)
    inputs = processor(str(tmp_path / "clip.mp4"), num_frames=8, do_sample_frames=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    for number, name in model.config.id2label.items():
        assert answers[name] == pytest.approx(logits[number].exp().item() / 2, abs=1e-6)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 0]), torch.zeros(3, 3, dtype=torch.long)])
def test_labels_of_another_shape_are_refused(labels):
    with pytest.raises(
        ValueError, match=r"Got labels of shape .*, expected \(3, 2\) for the label sets \['verb', 'noun'\]"
    ):
        make_model()(torch.randn(3, *CLIPS), labels=labels)


@pytest.mark.parametrize(
    "label_sets",
    [
        {"verb": [0, 2], "noun": [2, 4]},
        {"verb": [0, 2], "noun": [3, 5]},
        {"verb": [0, 5]},
        {"verb": [0, 3], "noun": [2, 5]},
        {"verb": [0, 2], "noun": [2]},
        {"verb": [0, 0], "noun": [0, 5]},
    ],
)
def test_label_sets_that_do_not_cover_the_outputs_are_refused(label_sets):
    with pytest.raises(
        StrictDataclassClassValidationError, match=r"Got label_sets=.*num_labels=5, expected two or more ranges"
    ):
        make_model(label_sets=label_sets)
