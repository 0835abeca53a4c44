"""Probes: full accuracy on separable features, chance on shuffled labels, splits by video, and the classifier's head."""

import json

import datasets
import numpy as np
import pytest
import torch
from builders import CLIPS, load_script, tiny_config
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from transformers import pipeline

from transformers_lvmae import LVMAEForPreTraining, LVMAEForVideoClassification
from transformers_lvmae.data import processor_for
from transformers_lvmae.evaluation.features import load_features
from transformers_lvmae.evaluation.probe import (
    AttentiveProbe,
    ProbeData,
    ProbeSweep,
    _parameter_groups,
    attentive_probe,
    class_ids,
    linear_probe,
    split_by_video,
)


CONFIG = tiny_config(pooling="class_attention", num_labels=4)


class Tokens(torch.utils.data.Dataset):
    """Clips of 6 random tokens, of which one tells the class, in a place of its own in every clip."""

    def __init__(self, labels, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = labels
        self.tokens = torch.randn(len(labels), 6, 32, generator=generator)
        place = torch.randint(6, (len(labels),), generator=generator)
        signal = 6 * torch.eye(32)[torch.from_numpy(labels)]
        self.tokens[torch.arange(len(labels)), place] = signal + torch.eye(32)[10] * 6

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"tokens": self.tokens[index], "labels": int(self.labels[index])}


SCALES = np.array([1, 100, 1, 0.01] * 4)  # as features come: not standardized


def vectors(number, seed, flipped=0.0, num_labels=4):
    """Features around one corner for each class; a share of the labels is another class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % num_labels
    features = (np.eye(num_labels, 16)[labels] + rng.normal(size=(number, 16)) * 0.25) * SCALES
    labels = np.where(rng.random(number) < flipped, (labels + 1) % num_labels, labels)
    return ProbeData(features.astype(np.float32), labels, np.arange(number))


def test_a_linear_probe_reaches_the_accuracy_that_the_features_allow():
    train, validation = vectors(400, 0), vectors(200, 1)
    found, scores = linear_probe(train, validation, 4)
    test = vectors(1000, 2)
    assert test.accuracy(scores(test)) > 0.95
    # Of labels of which 30 % are another class's, 70 % can be right.
    test = vectors(2000, 3, flipped=0.3)
    assert test.accuracy(scores(test)) == pytest.approx(0.7, abs=0.04)
    assert 0.9 < found["validation_accuracy"] <= 1


def test_scores_that_are_not_finite_are_wrong():
    data = ProbeData(None, np.array([0, 0, 1]), np.array([0, 0, 1]))
    assert data.accuracy(np.full((3, 2), np.nan), k=5) == 0.0
    assert data.accuracy(np.array([[0.9, 0.1], [np.nan, 0.5], [0.2, 0.8]])) == 0.5


def test_shuffled_labels_give_chance():
    rng = np.random.default_rng(0)
    train, validation, test = vectors(400, 0), vectors(200, 1), vectors(2000, 2)
    train.labels = rng.permutation(train.labels)
    _, scores = linear_probe(train, validation, 4)
    assert test.accuracy(scores(test)) == pytest.approx(0.25, abs=0.05)


def test_classes_that_training_lacks_keep_their_place():
    train = vectors(90, 0, num_labels=3)
    train.labels = train.labels + (train.labels > 0)  # classes 0, 2, 3
    _, scores = linear_probe(train, train, 5)
    probabilities = scores(train)
    assert probabilities.shape == (90, 5)
    assert (probabilities[:, [1, 4]] == 0).all()
    assert train.accuracy(probabilities) > 0.9


@pytest.mark.parametrize("k", [1, 3])
def test_accuracy_is_scikit_learns(k):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(6, size=200), rng.random((200, 6))
    assert ProbeData(None, labels, np.arange(200)).accuracy(scores, k) == top_k_accuracy_score(labels, scores, k=k)


def test_a_videos_clips_are_averaged():
    rng = np.random.default_rng(0)
    videos = rng.integers(40, size=150)
    labels = (videos * 7) % 5
    scores = rng.random((150, 5))
    answers = {video: scores[videos == video].mean(axis=0).argmax() for video in np.unique(videos)}
    expected = accuracy_score([(video * 7) % 5 for video in answers], list(answers.values()))
    assert ProbeData(None, labels, videos).accuracy(scores) == expected


def test_a_video_is_never_in_training_and_validation():
    videos = np.repeat(np.arange(50), 3)
    data = ProbeData(np.arange(150)[:, None], videos % 4, videos)
    train, validation = split_by_video(data, 0.2, seed=0)
    assert set(train.videos) | set(validation.videos) == set(range(50))
    assert not set(train.videos) & set(validation.videos)
    assert len(validation.videos) == 30
    np.testing.assert_array_equal(validation.features[:, 0] // 3, validation.videos)
    assert set(split_by_video(data, 0.2, seed=1)[1].videos) != set(validation.videos)


def test_an_attentive_probe_finds_the_token_that_a_mean_hides():
    rng = np.random.default_rng(0)

    def data(number, seed):
        labels = rng.integers(4, size=number)
        return ProbeData(Tokens(labels, seed), labels, np.arange(number))

    train, validation, test = data(256, 0), data(64, 1), data(256, 2)
    options = {"learning_rates": (1e-6, 3e-3), "weight_decays": (0.01,), "use_cpu": True, "disable_tqdm": True}
    found, scores, _ = attentive_probe(train, validation, CONFIG, 0, num_train_epochs=12, batch_size=32, **options)
    assert found["learning_rate"] == 3e-3
    assert test.accuracy(scores(test)) > 0.9
    train.features.labels = train.labels = rng.permutation(train.labels)
    _, scores, _ = attentive_probe(train, validation, CONFIG, 0, num_train_epochs=2, batch_size=32, **options)
    assert test.accuracy(scores(test)) == pytest.approx(0.25, abs=0.1)


def test_probes_of_a_sweep_learn_as_each_would_alone():
    sweep = ProbeSweep(CONFIG, 3)
    tokens, labels = torch.randn(5, 6, 32), torch.randint(4, (5,))
    sweep(tokens, labels)["loss"].backward()
    for probe in sweep.probes:
        swept = {name: weight.grad.clone() for name, weight in probe.named_parameters()}
        probe.zero_grad()
        torch.nn.functional.cross_entropy(probe(tokens), labels).backward()
        for name, weight in probe.named_parameters():
            torch.testing.assert_close(swept[name], weight.grad, rtol=1e-4, atol=1e-7)


def test_a_probe_of_a_sweep_ends_as_it_would_alone():
    """Large weights make large gradients, which a common limit of the norm would shrink."""
    labels = np.arange(32) % 4
    data = ProbeData(Tokens(labels, 0), labels, np.arange(32))
    data.features.tokens *= 50
    options = {"num_train_epochs": 2, "batch_size": 8, "use_cpu": True, "disable_tqdm": True}
    rates, decays = (3e-3, 1e-12), (0.1,)
    found, _, swept = attentive_probe(data, data, CONFIG, 0, learning_rates=rates, weight_decays=decays, **options)
    assert found["learning_rate"] == 3e-3
    _, _, alone = attentive_probe(data, data, CONFIG, 0, learning_rates=(3e-3,), weight_decays=decays, **options)
    for one, other in zip(swept.parameters(), alone.parameters()):
        torch.testing.assert_close(one, other)


def test_each_probe_has_its_rate_and_only_matrices_decay():
    sweep = ProbeSweep(CONFIG, 2)
    groups = _parameter_groups(sweep, [(1e-3, 0.1), (1e-2, 0.4)])
    place = {id(weight): group for group in groups for weight in group["params"]}
    for probe, (rate, decay) in zip(sweep.probes, [(1e-3, 0.1), (1e-2, 0.4)]):
        for name, weight in probe.named_parameters():
            assert place[id(weight)]["lr"] == rate
            is_matrix = name.endswith("weight") and "norm" not in name
            assert place[id(weight)]["weight_decay"] == (decay if is_matrix else 0.0), name


def test_of_equal_regularizations_the_strongest_is_kept():
    found, _ = linear_probe(vectors(200, 0), vectors(100, 1), 4, (0.5, 0.500001))
    assert found["C"] == 0.5


def test_a_probe_is_the_classifiers_head():
    model = LVMAEForVideoClassification(CONFIG).eval()
    probe = AttentiveProbe(CONFIG).eval()
    missing, unexpected = model.load_state_dict(probe.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("lvmae.") for name in missing)
    clips = torch.randn(2, 8, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(probe(model.lvmae(clips).last_hidden_state), model(clips).logits)


def test_class_ids_of_names_and_of_class_labels():
    train = datasets.Dataset.from_dict({"label": ["b", "a", "b"]})
    test = datasets.Dataset.from_dict({"label": ["c"]})
    ids, names = class_ids({"train": train, "test": test}, "label")
    assert names == ["a", "b", "c"]
    assert [ids["train"].tolist(), ids["test"].tolist()] == [[1, 0, 1], [2]]
    feature = datasets.ClassLabel(names=["b", "a", "c"])
    ids, names = class_ids({"train": train.cast_column("label", feature)}, "label")
    assert names == ["b", "a", "c"]
    assert ids["train"].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="expected a class in 'verb' for every clip"):
        class_ids({"train": train}, "verb")


def test_from_videos_to_a_classifier(tmp_path):
    """The two scripts in a row: features, both probes, and a folder for the pipeline."""
    model = LVMAEForPreTraining(tiny_config())
    model.save_pretrained(tmp_path / "pretrain")
    processor_for(model.config).save_pretrained(tmp_path / "pretrain")
    extract, probe = load_script("extract_features").main, load_script("probe").main
    for name, options in {"features": [], "tokens": ["--tokens", "--shard_size", "5"]}.items():
        extract([str(tmp_path / "pretrain"), str(CLIPS), str(tmp_path / name), "--batch_size", "8", *options])
    for kind, name in {"linear": "features", "attentive": "tokens"}.items():
        options = ["--seeds", "2", "--num_train_epochs", "1"]
        probe([kind, str(tmp_path / name), str(tmp_path / kind), *options])
        results = json.loads((tmp_path / kind / "results.json").read_text())
        assert results["test_videos"] == results["test_videos_total"] == 8
        accuracies = [seed["test_accuracy"] for seed in results["seeds"]]
        assert results["test_accuracy_mean"] == pytest.approx(np.mean(accuracies))
        assert results["test_accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    answers = pipeline("video-classification", model=str(tmp_path / "attentive"), top_k=3)(
        str(CLIPS / "test" / "clip_00000.mp4")
    )
    names = {line.split(",")[1] for line in (CLIPS / "train" / "metadata.csv").read_text().splitlines()[1:]}
    assert {answer["label"] for answer in answers} <= names
    saved = LVMAEForVideoClassification.from_pretrained(tmp_path / "attentive")
    encoder = LVMAEForPreTraining.from_pretrained(tmp_path / "pretrain").lvmae
    for weight, expected in zip(saved.lvmae.parameters(), encoder.parameters()):
        assert torch.equal(weight, expected)
    with pytest.raises(ValueError, match="expected clip features for a linear probe"):
        probe(["linear", str(tmp_path / "tokens"), str(tmp_path / "no")])

    swapped = ["--train_split", "test", "--validation_split", "train", "--test_split", "train", "--seeds", "1"]
    probe(["linear", str(tmp_path / "features"), str(tmp_path / "swapped"), *swapped])
    results = json.loads((tmp_path / "swapped" / "results.json").read_text())
    assert results["test_videos"] == len(load_features(tmp_path / "features", "train"))
    assert results["seeds"][0]["validation_accuracy"] == results["test_accuracy_mean"]  # of the same videos
    with pytest.raises(ValueError, match="expected a class in 'verb' for every clip"):
        probe(["linear", str(tmp_path / "features"), str(tmp_path / "no"), "--label_column", "verb"])


def test_options_of_the_attentive_probe_reach_its_trainer(monkeypatch):
    script, seen = load_script("probe"), {}

    def attentive_probe(*arguments, **options):
        seen.update(options)
        return {}, lambda test: np.eye(4)[test.labels], None

    monkeypatch.setattr(script, "attentive_probe", attentive_probe)
    labels = np.arange(8) % 4
    data = dict.fromkeys(("train", "test"), ProbeData(None, labels, np.arange(8)))
    monkeypatch.setattr(script, "split_by_video", lambda data, share, seed: (data, data))
    args = script.parse_args(["attentive", "features", "out", "--num_workers", "3", "--bf16"])
    found, _ = script.run_seed(args, data, CONFIG, 0)
    assert seen == {"dataloader_num_workers": 3, "bf16": True}
    assert found["test_accuracy"] == 1
