"""Videos that cannot be read in an evaluation split: left out of losses, metrics and predictions, counted, and named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import CLIPS, MODEL, TESTS, TOKENIZER, load_script
from datasets import Dataset, DatasetDict
from transformers import Trainer

from transformers_lvmae import (
    FSQMagViTModel,
    FSQMagViTTrainer,
    FSQMagViTTrainingArguments,
    LVMAEClassificationArguments,
    LVMAEClassificationTrainer,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
    LVMAEPreTrainer,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.data import (
    FrameSampling,
    MaskedVideoClips,
    TooManyBrokenVideos,
    VideoClips,
    VideoReading,
    load_video_dataset,
    processor_for,
)
from transformers_lvmae.data.streams import trainer_dataset
from transformers_lvmae.models.video_seeking import VideoReadError


BROKEN = (1, 4, 5)  # with batches of two, one batch has no readable clip
NAMES = {"verb": ["go", "stop"], "noun": ["cup", "pot", "tap"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven rows to evaluate, of which three cannot be read, and two to train on."""
    folder = tmp_path_factory.mktemp("data")
    whole = sorted((CLIPS / "test").glob("*.mp4"))
    (folder / "broken.mp4").write_bytes(b"no video")
    videos = [str(folder / "broken.mp4") if number in BROKEN else str(whole[number]) for number in range(7)]
    rows = {
        "video": videos,
        "verb": [NAMES["verb"][i % 2] for i in range(7)],
        "noun": [NAMES["noun"][i % 3] for i in range(7)],
    }
    rows["label"] = rows["noun"]
    train = {name: values[2:4] for name, values in rows.items()}
    splits = DatasetDict(validation=Dataset.from_dict(rows), train=Dataset.from_dict(train))
    splits.save_to_disk(str(folder / "set"))
    return folder / "set"


def rows_of(data, whole=False):
    rows = load_video_dataset(data, label_column=["verb", "noun", "label"])["validation"]
    return rows.select([number for number in range(7) if number not in BROKEN]) if whole else rows


def trainer_of(stage, rows, folder, batch_size=2):
    reading = VideoReading(on_error="skip", broken_folder=folder / "broken_videos")
    arguments = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    arguments["per_device_eval_batch_size"] = batch_size
    torch.manual_seed(0)
    if stage == "tokenizer":
        clips = VideoClips(
            rows,
            processor_for(TOKENIZER, do_normalize=False),
            TOKENIZER.window_size,
            sampling=FrameSampling(frame_stride=1),
            reading=reading,
        )
        return FSQMagViTTrainer(FSQMagViTModel(TOKENIZER), FSQMagViTTrainingArguments(**arguments), eval_dataset=clips)
    processor = processor_for(MODEL)
    if stage == "pretraining":
        config = LVMAEConfig(**{**MODEL.to_dict(), "target_type": "pixels", "decoder_mask": "random"})
        masks = {"grid_size": config.grid_size, "mask_ratio": config.mask_ratio}
        clips = MaskedVideoClips(rows, processor, 8, reading=reading, **masks)
        return LVMAEPreTrainer(
            LVMAEForPreTraining(config),
            LVMAEPreTrainingArguments(**arguments),
            eval_dataset=clips,
            processing_class=processor,
        )
    columns = ["noun", "verb"] if stage == "two labels" else "label"
    names = {column: NAMES[column] for column in columns} if stage == "two labels" else {"label": NAMES["noun"]}
    config = LVMAEConfig(**{**MODEL.to_dict(), **LVMAEConfig.label_fields(names)})
    model = LVMAEForVideoClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    clips = VideoClips(rows, processor, 8, reading=reading, label_column=columns)
    return LVMAEClassificationTrainer(model, LVMAEClassificationArguments(**arguments), eval_dataset=clips)


@pytest.mark.parametrize("stage", ["one label", "two labels", "tokenizer"])
def test_the_numbers_are_those_of_the_readable_clips(stage, data, tmp_path):
    trainer = trainer_of(stage, rows_of(data), tmp_path)
    found = trainer.evaluate()
    expected = trainer_of(stage, rows_of(data, whole=True), tmp_path, batch_size=1).evaluate()
    counts = {name: found.pop(f"eval_{name}") for name in ("samples", "samples_skipped", "samples_total")}
    assert counts == {"samples": 4, "samples_skipped": 3, "samples_total": 7}
    speed = ("runtime", "per_second", "time", "samples")
    for name, value in expected.items():
        if not any(word in name for word in speed):
            assert found[name] == pytest.approx(value, rel=1e-4), name
    assert "eval_loss" in found
    (named,) = (json.loads(line) for line in next((tmp_path / "broken_videos").iterdir()).read_text().splitlines())
    assert named["video"].endswith("broken.mp4")


def test_the_loss_of_pre_training_is_that_of_the_readable_clips(data, tmp_path):
    """Each clip alone, because a clip's mask depends on its row's number."""
    trainer = trainer_of("pretraining", rows_of(data), tmp_path)
    found = trainer.evaluate()
    losses = []
    for number in set(range(7)) - set(BROKEN):
        item = {name: value for name, value in trainer.eval_dataset[number].items() if name != "is_readable"}
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model.eval(), trainer.data_collator([item])).item())
    assert found["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["eval_samples"] == 4


def test_predictions_are_those_of_the_readable_clips(data, tmp_path):
    found = (trainer := trainer_of("one label", rows_of(data), tmp_path)).predict(trainer.eval_dataset)
    whole = trainer_of("one label", rows_of(data, whole=True), tmp_path)
    expected = whole.predict(whole.eval_dataset)
    np.testing.assert_allclose(found.predictions, expected.predictions, rtol=1e-4, atol=1e-5)
    assert found.label_ids.tolist() == expected.label_ids.tolist()


def test_a_stream_counts_them_too(data, tmp_path):
    trainer = trainer_of("one label", rows_of(data), tmp_path)
    expected = trainer.evaluate()
    trainer.eval_dataset.rows = rows_of(data).to_iterable_dataset()
    found = trainer.evaluate(trainer_dataset(trainer.eval_dataset))
    for name in ("eval_samples", "eval_samples_skipped", "eval_samples_total", "eval_accuracy", "eval_loss"):
        assert found[name] == pytest.approx(expected[name]), name


def test_where_nothing_can_be_read_the_error_says_so(data, tmp_path):
    with pytest.raises(VideoReadError, match="Got 2 clips to evaluate of which none can be read"):
        trainer_of("one label", rows_of(data).select([4, 5]), tmp_path).evaluate()
    trainer = trainer_of("one label", rows_of(data).select([4] * 11), tmp_path)
    with pytest.raises(TooManyBrokenVideos, match="Got 11 unreadable videos"):
        trainer.evaluate()


def test_fine_tuning_ends_with_the_accuracy_of_what_it_could_read(data, tmp_path, monkeypatch):
    fields = {name: getattr(MODEL, name) for name in ("image_size", "patch_size", "num_frames", "hidden_size")}
    fields |= {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    options = ["--dataset_name", data, "--output_dir", tmp_path, "--config_overrides", json.dumps(fields)]
    options += ["--test_split", "validation", "--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 1]
    options += ["--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true", "--save_strategy", "no"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *map(str, options)])
    load_script("finetune").main()
    for split in ("eval", "test"):
        results = json.loads((tmp_path / f"{split}_results.json").read_text())
        assert (results[f"{split}_samples"], results[f"{split}_samples_total"]) == (4, 7)
    assert [Path(name).name for name in json.loads((tmp_path / "broken_videos.json").read_text())] == ["broken.mp4"]
    assert "samples" not in (tmp_path / "README.md").read_text().split("## Results")[1].split("##")[0]


# transformers fills the last step of several processes with clips that it has had, which change the loss of their batch.
WHOLE_BATCHES = [*range(7), 3]
TWO_PROCESSES = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_broken_evaluation import WHOLE_BATCHES, rows_of, trainer_of
trainer = trainer_of("one label", rows_of(Path({data!r})), Path({folder!r}))
metrics = trainer.evaluate()
predictions = trainer.predict(trainer.eval_dataset).predictions
trainer.eval_dataset.rows = trainer.eval_dataset.rows.select(WHOLE_BATCHES)
metrics["eval_loss"] = trainer.evaluate()["eval_loss"]
if trainer.is_world_process_zero():
    Path({folder!r}, "out.json").write_text(json.dumps([metrics, predictions.tolist()]))
trainer.end()
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(data, tmp_path):
    """Seven rows in batches of two on two processes (gloo): the second step of one process has no readable clip."""
    script = tmp_path / "run.py"
    folders = {"tests": str(TESTS / "training"), "data": str(data), "folder": str(tmp_path)}
    script.write_text(f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n" + TWO_PROCESSES.format(**folders))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    run = subprocess.run(launcher, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    metrics, predictions = json.loads((tmp_path / "out.json").read_text())
    trainer = trainer_of("one label", rows_of(data), tmp_path)
    expected = trainer.evaluate()
    for name in ("eval_samples", "eval_samples_skipped", "eval_samples_total", "eval_accuracy", "eval_top5_accuracy"):
        assert metrics[name] == expected[name]
    np.testing.assert_allclose(predictions, trainer.predict(trainer.eval_dataset).predictions, rtol=1e-4, atol=1e-5)
    trainer.eval_dataset.rows = trainer.eval_dataset.rows.select(WHOLE_BATCHES)
    assert metrics["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)


def test_a_loss_in_evaluation_is_the_mean_over_the_clips_of_its_process(data, tmp_path, monkeypatch):
    """Trainer would divide it by a count over all processes, of whose clips some cannot be read."""
    counts = []
    monkeypatch.setattr(Trainer, "compute_loss", lambda self, model, inputs, outputs, count: counts.append(count))
    trainer = trainer_of("one label", rows_of(data), tmp_path)
    for training in (True, False):
        trainer.compute_loss(trainer.model.train(training), {}, num_items_in_batch=5)
    assert counts == [5, None]


def test_evaluation_still_raises_where_it_is_asked_to(data, tmp_path):
    trainer = trainer_of("one label", rows_of(data), tmp_path)
    shutil.rmtree(tmp_path / "broken_videos", ignore_errors=True)
    trainer.eval_dataset.on_error = "raise"
    with pytest.raises(VideoReadError, match=r"broken\.mp4"):
        trainer.evaluate()
