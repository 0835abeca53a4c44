"""Evaluation: views, averages, each video exactly once on any number of processes, tables and pictures."""

import csv
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from builders import SCRIPTS, load_script, tiny_config, tiny_tokenizer_config
from datasets import Dataset, DatasetDict, load_from_disk
from huggingface_hub.repocard_data import model_index_to_eval_results
from matplotlib.axes import Axes
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_score, recall_score
from torchvision.transforms.v2.functional import center_crop, resize

from transformers_lvmae import (
    FSQMagViTModel,
    LVMAEClassificationArguments,
    LVMAEClassificationTrainer,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
)
from transformers_lvmae.data import FrameSampling, TooManyBrokenVideos, VideoClips, load_video_dataset, processor_for
from transformers_lvmae.data.broken_videos import BrokenVideos
from transformers_lvmae.evaluation.reports import (
    accuracies,
    accuracies_by_length,
    by_label_set,
    class_table,
    confusion_counts,
    draw_confusion_matrix,
    log_probabilities,
    write_evaluation,
)
from transformers_lvmae.evaluation.views import Predictions, VideoViews, check_classes, predict
from transformers_lvmae.models.video_io import write_video
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.sharing.loading import load_classifier


NAMES = {"verb": ["take", "put"], "noun": ["tap", "spoon", "plate"]}
FRAMES = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five videos of 2 to 4 seconds at 5 frames a second, 48 x 32 pixels; one row is a part of its video."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    rows = {"video": [], "start": [None] * 4 + [0.5], "end": [None] * 5, "verb": [], "noun": []}
    for number in range(5):
        path = folder / f"{number}.mp4"
        frames = generator.integers(0, 256, (10 + 2 * number, 4, 6, 3), dtype=np.uint8)
        write_video(path, frames.repeat(8, axis=1).repeat(8, axis=2), fps=5)
        rows["video"].append(str(path))
        rows["verb"].append(NAMES["verb"][number % 2])
        rows["noun"].append(NAMES["noun"][number % 3])
    DatasetDict({"test": Dataset.from_dict(rows)}).save_to_disk(str(folder / "set"))
    return folder / "set"


@pytest.fixture(scope="module")
def model(data):
    """Large weights, so that videos differ in their answers."""
    names = {"verb": sorted(NAMES["verb"]), "noun": sorted(NAMES["noun"])}
    torch.manual_seed(0)
    config = LVMAEConfig(**{**tiny_config().to_dict(), **LVMAEConfig.label_fields(names)})
    model = LVMAEForVideoClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    return model.eval()


def views_of(data, model, columns=("verb", "noun"), **kwargs):
    rows = load_video_dataset(data, label_column=columns)["test"]
    return VideoViews(rows, processor_for(model.config), FRAMES, label_column=columns, **kwargs)


def make_views(num_frames=8, frame_stride=None, short_videos="stretch", **kwargs):
    sampling = FrameSampling(frame_stride, short_videos=short_videos)
    return VideoViews([], processor_for(tiny_config()), num_frames, sampling, **kwargs)


def test_views_with_a_stride_reach_from_the_beginning_to_the_end():
    views = make_views(num_frames=4, frame_stride=3, temporal_views=3)
    starts = [views.sample_view(30, view) for view in range(3)]
    assert [frames.tolist() for frames in starts] == [[0, 3, 6, 9], [10, 13, 16, 19], [20, 23, 26, 29]]
    short = [views.sample_view(9, view).tolist() for view in range(3)]
    assert short == [[0, 2, 4, 6]] * 3
    looped = make_views(num_frames=4, frame_stride=3, temporal_views=3, short_videos="loop")
    assert looped.sample_view(9, 2).tolist() == [0, 3, 6, 0]


def test_views_without_a_stride_are_equal_parts():
    """32 frames of each of four parts of a long video: the multi-crop baseline."""
    views = make_views(num_frames=32, temporal_views=4)
    frames = np.concatenate([views.sample_view(128, view) for view in range(4)])
    assert frames.tolist() == list(range(128))
    tiny = [views.sample_view(3, view) for view in range(4)]
    assert [set(part.tolist()) for part in tiny] == [{0}, {0}, {1}, {2}]


@pytest.mark.parametrize(
    "sampling",
    [
        FrameSampling(),
        FrameSampling(frame_stride=2),
        FrameSampling(frame_stride=50, short_videos="loop"),
        FrameSampling(short_videos="pad"),
        FrameSampling(frame_jitter=True),
    ],
)
def test_one_view_has_the_frames_of_plain_evaluation(sampling):
    views = VideoViews([], processor_for(tiny_config()), 8, sampling)
    for total in (1, 7, 8, 23, 60):
        assert views.sample_view(total, 0).tolist() == sampling.sample(total, 8).tolist()


@pytest.mark.parametrize(
    ("shape", "places"), [((20, 50), [(0, 0), (0, 15), (0, 30)]), ((31, 10), [(0, 0), (10, 0), (21, 0)])]
)
def test_spatial_views_lie_along_the_longer_side(shape, places):
    views = make_views(spatial_views=3)
    frame = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    side = min(shape)
    for view, (top, left) in enumerate(places):
        region = frame[..., top : top + side, left : left + side]
        assert torch.equal(views.crop_view(frame, view), views.processor.fit(region))
    assert torch.equal(make_views().crop_view(frame, 0), views.processor.fit(frame))


def test_views_of_a_model_that_is_not_square_show_the_whole_region():
    processor = processor_for(tiny_config(image_size=(32, 56)))
    frame = torch.randint(0, 256, (3, 100, 200), dtype=torch.uint8)
    places = VideoViews([], processor, 8, spatial_views=3)
    for view, left in enumerate((0, 12, 25)):
        expected = resize(frame[..., left : left + 175], [32, 56], antialias=True)
        assert torch.equal(places.crop_view(frame, view), expected)
    whole = resize(frame, [32, 64], antialias=True)
    assert torch.equal(processor.fit(frame), center_crop(whole, [32, 56]))


def test_less_than_one_view_is_refused():
    with pytest.raises(ValueError, match="Got temporal_views=0 and spatial_views=1, expected at least 1"):
        make_views(temporal_views=0)


def test_probabilities_are_averaged_over_views(data, model):
    """Beside a loop over one clip at a time; a batch of four clips splits a row's six views."""
    views = views_of(data, model, temporal_views=2, spatial_views=3)
    predictions = predict(model, views, Accelerator(), batch_size=4)
    for row in range(5):
        with torch.no_grad():
            clips = torch.cat([views[row * 2 + view]["pixel_values_videos"] for view in range(2)])
            expected = torch.stack([model(clip[None]).logits[0].exp() for clip in clips]).mean(dim=0)
        np.testing.assert_allclose(predictions.probabilities[row], expected.numpy(), rtol=1e-5)
    assert len({tuple(clip.flatten()[:50].tolist()) for clip in clips}) == 6
    assert predictions.labels.tolist() == [[1, 2], [0, 1], [1, 0], [0, 2], [1, 1]]
    np.testing.assert_allclose(predictions.durations, [2.0, 2.4, 2.8, 3.2, 3.0], atol=1e-6)


def test_a_model_in_training_is_set_to_evaluation(data, model):
    """A fifth of the tubes is dropped in training only."""
    views = views_of(data, model)
    expected = predict(model, views, Accelerator()).probabilities
    model.train()
    again = predict(model, views, Accelerator()).probabilities
    assert not model.training
    assert np.array_equal(again, expected)


@pytest.mark.parametrize("columns", [("verb", "noun"), "noun"])
def test_one_view_equals_plain_evaluation(columns, data, model, tmp_path):
    """The trainer's `evaluate`, with one label and with two; five videos, two at a time."""
    if columns == "noun":
        fields = LVMAEConfig.label_fields({"noun": sorted(NAMES["noun"])})
        model = LVMAEForVideoClassification(
            LVMAEConfig(**{**model.config.to_dict(), "label_sets": None, **fields})
        ).eval()
    views = views_of(data, model, columns)
    predictions = predict(model, views, Accelerator(), batch_size=2)
    arguments = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "per_device_eval_batch_size": 2}
    clips = VideoClips(views.rows, views.processor, FRAMES, label_column=columns)
    trainer = LVMAEClassificationTrainer(
        model, LVMAEClassificationArguments(output_dir=str(tmp_path), **arguments), eval_dataset=clips
    )
    expected = trainer.evaluate()
    metrics = accuracies(predictions, model.config)
    assert len(metrics) == (8 if columns != "noun" else 3)
    shared = {name: value for name, value in metrics.items() if "mean_class" not in name}
    assert shared == {name: expected[f"eval_{name}"] for name in shared}


@pytest.fixture(scope="module")
def with_broken(data, tmp_path_factory):
    """The five videos, and a row before the third whose video cannot be read. A column `narration_id` names the rows."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "broken.mp4").write_bytes(b"no video")
    rows = [{**row, "narration_id": f"P01_{number}"} for number, row in enumerate(load_from_disk(str(data))["test"])]
    rows.insert(2, {**rows[2], "video": str(folder / "broken.mp4"), "narration_id": "P01_broken"})
    splits = DatasetDict(test=Dataset.from_list(rows))
    for name, names in NAMES.items():
        splits = splits.cast_column(name, datasets.ClassLabel(names=sorted(names)))
    splits["unlabelled"] = splits["test"].map(lambda row: {"verb": None})
    splits.save_to_disk(str(folder / "set"))
    return folder / "set"


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor_for(model.config).save_pretrained(folder)
    return folder


def evaluate_options(saved, with_broken, output, *options):
    arguments = ["--model_name_or_path", saved, "--dataset_name", with_broken, "--label_column", "verb,noun"]
    arguments += ["--output_dir", output, "--temporal_views", 3, "--batch_size", 2]
    arguments += ["--predictions", output / "predictions.parquet", *options]
    return list(map(str, arguments))


def check_predictions(path, predictions, labelled):
    """A row for each row of the dataset, in its order, beside the predictions of the five readable rows."""
    rows = datasets.Dataset.from_parquet(str(path))
    assert rows["narration_id"][:] == ["P01_0", "P01_1", "P01_broken", "P01_2", "P01_3", "P01_4"]
    assert rows["start"][:] == [None] * 5 + [0.5]
    assert rows["verb_probabilities"][2] is None
    assert rows["noun_probabilities"][2] is None
    kept = rows.select([0, 1, 3, 4, 5])
    found = np.concatenate([np.asarray(kept[f"{name}_probabilities"][:]) for name in ("verb", "noun")], axis=1)
    np.testing.assert_allclose(found, predictions.probabilities, rtol=1e-6, atol=1e-9)
    assert rows.features["noun"].names == sorted(NAMES["noun"])
    assert rows.features["noun_probabilities"] == datasets.List(datasets.Value("float32"))
    if not labelled:
        assert kept["verb"][:] == [None] * 5
    for name, names in NAMES.items() if labelled else ():
        assert [rows.features[name].names[label] for label in kept[name][:]] == [
            names[i % len(names)] for i in range(5)
        ]


def test_two_processes_give_the_numbers_of_one(data, model, saved, with_broken, tmp_path):
    """scripts/evaluate_classifier.py under accelerate's launcher (gloo): six rows on two processes, two clips at a time. One cannot be
    read, so that the processes have unequal numbers of predictions."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = evaluate_options(saved, with_broken, tmp_path / "two", "--split", "test")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, str(SCRIPTS / "evaluate_classifier.py"), *options]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-6000:]
    assert "on 5 of 6 clips" in run.stdout
    predictions = predict(model, views_of(data, model, temporal_views=3), Accelerator(), batch_size=2)
    about = {"model": str(saved), "dataset": str(data), "split": "test"}
    expected = write_evaluation(tmp_path / "one", predictions, model.config, about)
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    counts = {name: two[name] for name in ("clips", "clips_skipped", "clips_unlabelled", "clips_total")}
    assert counts == {"clips": 5, "clips_skipped": 1, "clips_unlabelled": 0, "clips_total": 6}
    assert two["metrics"] == expected["metrics"]
    assert two["by_length"] == expected["by_length"]
    assert (tmp_path / "two" / "classes_noun.csv").read_text() == (tmp_path / "one" / "classes_noun.csv").read_text()
    (name,) = json.loads((tmp_path / "two" / "broken_videos.json").read_text())
    assert name.endswith("broken.mp4")
    check_predictions(tmp_path / "two" / "predictions.parquet", predictions, labelled=True)


def test_a_split_without_labels_gets_predictions_alone(data, model, saved, with_broken, tmp_path, monkeypatch, capsys):
    main = load_script("evaluate_classifier").main
    options = evaluate_options(saved, with_broken, tmp_path, "--split", "unlabelled")
    monkeypatch.setattr(sys, "argv", ["evaluate_classifier.py", *options])
    main()
    assert "No labels in column 'verb,noun' of split 'unlabelled'" in capsys.readouterr().out
    assert not (tmp_path / "results.json").exists()
    predictions = predict(model, views_of(data, model, temporal_views=3), Accelerator(), batch_size=2)
    check_predictions(tmp_path / "predictions.parquet", predictions, labelled=False)


def test_a_view_that_cannot_be_read_leaves_out_its_whole_video(data, model, monkeypatch):
    views = views_of(data, model, temporal_views=3, broken=BrokenVideos())
    whole = predict(model, views, Accelerator(), batch_size=2)
    read, tried = VideoViews.read_view, []

    def read_view(self, number, temporal):
        tried.append((number, temporal))
        if (number, temporal) == (3, 1):
            raise VideoReadError("the second third is damaged")
        return read(self, number, temporal)

    monkeypatch.setattr(VideoViews, "read_view", read_view)
    part = predict(model, views, Accelerator(), batch_size=2)
    assert part.skipped == [3]
    assert part.num_rows == 5
    assert np.array_equal(part.probabilities, whole.probabilities[[0, 1, 2, 4]])
    assert np.array_equal(part.labels, whole.labels[[0, 1, 2, 4]])
    assert (3, 2) not in tried
    assert (views.broken.failed, views.broken.tried) == (1, 10)


def test_where_too_much_or_all_is_broken_evaluation_stops(data, model, tmp_path):
    rows = load_video_dataset(data, label_column=["verb", "noun"])["test"].select([0] * 12)
    missing = rows.map(lambda row: {"video": {"path": str(tmp_path / "none.mp4"), "bytes": None}})
    options = {"label_column": ("verb", "noun"), "broken": BrokenVideos()}
    with pytest.raises(TooManyBrokenVideos, match="Got 11 unreadable videos"):
        predict(model, VideoViews(missing, processor_for(model.config), FRAMES, **options), Accelerator())
    few = VideoViews(
        missing.select([0]), processor_for(model.config), FRAMES, label_column=("verb", "noun"), broken=BrokenVideos()
    )
    with pytest.raises(VideoReadError, match="Got 1 rows of which none can be read"):
        predict(model, few, Accelerator())
    with pytest.raises(VideoReadError, match=r"none\.mp4"):
        predict(model, VideoViews(missing, processor_for(model.config), FRAMES, label_column="verb"), Accelerator())


def test_rows_without_a_label_are_predicted_and_not_counted(random_predictions, tmp_path):
    about = {"model": "m", "dataset": "d", "split": "s"}
    expected = accuracies(random_predictions.part(np.arange(400) >= 100), CONFIG)
    random_predictions.labels[:100] = -1
    random_predictions.skipped = [400, 401]
    results = write_evaluation(tmp_path, random_predictions, CONFIG, about)
    assert results["metrics"] == expected
    counts = [results[name] for name in ("clips", "clips_skipped", "clips_unlabelled", "clips_total")]
    assert counts == [300, 2, 100, 402]


def test_rows_with_a_label_of_one_set_alone_are_not_evaluated():
    labels = np.array([[0, 1], [-1, 1], [0, -1], [-1, -1]])
    predictions = Predictions(np.arange(8.0).reshape(4, 2), labels, np.arange(4.0), [4])
    labelled = predictions.labelled()
    assert labelled.labels.tolist() == [[0, 1]]
    assert labelled.probabilities.tolist() == [[0, 1]]
    assert labelled.num_rows == 2
    assert len(Predictions(np.zeros((3, 2)), None, np.zeros(3)).labelled().probabilities) == 0


def test_one_view_that_is_not_finite_makes_its_row_wrong(data, model):
    views = views_of(data, model, temporal_views=2)
    whole = predict(model, views, Accelerator())

    def diverge(module, args, kwargs, output):
        output.logits[0] = torch.nan  # the first clip of each batch
        return output

    handle = model.register_forward_hook(diverge, with_kwargs=True)
    part = predict(model, views, Accelerator(), batch_size=4)
    handle.remove()
    assert np.isnan(part.probabilities).all(axis=1).tolist() == [True, False, True, False, True]
    metrics = accuracies(part, model.config)
    assert metrics["non_finite"] == 3
    right = [(whole.probabilities[row, :2].argmax() == whole.labels[row, 0]) for row in (1, 3)]
    assert metrics["verb_accuracy"] == sum(right) / 5
    _, labels, _ = by_label_set(part, model.config)["verb"]
    counts = confusion_counts(part.probabilities[:, :2], labels)
    assert counts.sum() == 2


@pytest.mark.parametrize("kind", ["pretraining", "tokenizer"])
def test_a_model_without_a_trained_classifier_is_refused(kind, tmp_path):
    model = LVMAEForPreTraining(tiny_config()) if kind == "pretraining" else FSQMagViTModel(tiny_tokenizer_config())
    model.save_pretrained(tmp_path)
    message = (
        "with LVMAEForPreTraining, expected" if kind == "pretraining" else "with model_type 'fsq_magvit', expected"
    )
    with pytest.raises(ValueError, match=message):
        load_classifier(str(tmp_path))


@pytest.fixture
def random_predictions():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(400, 6)) * 2
    labels = generator.integers(0, 5, 400)  # class 5 never occurs
    logits[np.arange(400), labels] += 1
    logits[:, 3] -= 50  # and class 3 is never predicted
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Predictions(probabilities, labels, generator.uniform(0, 50, 400))


CONFIG = tiny_config(num_labels=6)


def test_confusions_and_classes_equal_scikit_learn(random_predictions):
    probabilities, labels = random_predictions.probabilities, random_predictions.labels
    predicted = probabilities.argmax(axis=1)
    counts = confusion_counts(probabilities, labels)
    assert np.array_equal(counts, confusion_matrix(labels, predicted, labels=range(6)))
    table = class_table(counts, list("abcdef"))
    settings = {"labels": range(6), "average": None, "zero_division": np.nan}
    recall, precision = recall_score(labels, predicted, **settings), precision_score(labels, predicted, **settings)
    for row, accuracy, share in zip(table, recall, precision):
        assert row["accuracy"] == (None if np.isnan(accuracy) else pytest.approx(accuracy))
        assert row["precision"] == (None if np.isnan(share) else pytest.approx(share))
    assert (table[5]["accuracy"], table[3]["precision"]) == (None, None)
    wrong = [int(number) for label, number in zip(labels, predicted) if label == 0 and number != 0]
    assert table[0]["taken_for"] == "abcdef"[max(range(6), key=wrong.count)]
    assert table[0]["times"] == max(map(wrong.count, range(6)))
    assert accuracies(random_predictions, CONFIG)["mean_class_accuracy"] == pytest.approx(np.nanmean(recall))


def test_classes_without_clips_are_no_part_of_the_mean():
    probabilities = np.eye(6)[[0, 1, 2]] * 0.5 + 0.1  # class 1 has no clips, and is predicted once
    metrics = accuracies(Predictions(probabilities, np.array([0, 0, 2]), np.ones(3)), CONFIG)
    assert metrics["mean_class_accuracy"] == (0.5 + 1) / 2


def test_lengths_are_binned_as_the_paper_does(random_predictions):
    predictions = random_predictions
    predictions.durations[:2] = [4.0, np.nan]
    table = accuracies_by_length(predictions, CONFIG)
    assert [part["seconds"] for part in table] == ["0-4", "4-8", "8-16", "16-32", ">32", "unknown"]
    edges = [(0, 4), (4, 8), (8, 16), (16, 32), (32, np.inf)]
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    for part, (low, high) in zip(table, edges):
        mask = [low <= seconds < high for seconds in predictions.durations]
        assert part["clips"] == sum(mask) > 10
        assert part["accuracy"] == pytest.approx(right[mask].mean())
    assert table[-1]["clips"] == 1
    predictions.durations[:] = 5
    empty, *_ = accuracies_by_length(predictions, CONFIG)
    assert empty == {"seconds": "0-4", "clips": 0}


def test_results_tables_and_card(random_predictions, tmp_path):
    about = {"model": "runs/finetune", "dataset": "data/diving48", "split": "test"}
    results = write_evaluation(tmp_path, random_predictions, CONFIG, about)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [f"LABEL_{number}" for number in range(6)]
    assert sum(int(row["clips"]) for row in rows) == 400
    card = yaml.safe_load((tmp_path / "model_card.yaml").read_text())
    name, entries = model_index_to_eval_results(card["model-index"])
    assert name == "finetune"
    values = {entry.metric_type: entry.metric_value for entry in entries}
    assert values == pytest.approx(results["metrics"], abs=1e-6)
    assert {(entry.dataset_name, entry.dataset_split, entry.task_type) for entry in entries} == {
        ("diving48", "test", "video-classification")
    }


@pytest.mark.parametrize("size", [3, 61])
def test_the_picture_shows_where_the_confusions_are(size, tmp_path):
    """A diagonal matrix is dark on the diagonal alone."""
    draw_confusion_matrix(tmp_path / "a.png", np.eye(size, dtype=int) * 7, [f"class {i}" for i in range(size)], "title")
    draw_confusion_matrix(tmp_path / "b.png", np.zeros((size, size), int), [f"class {i}" for i in range(size)], "title")
    pictures = [np.asarray(Image.open(tmp_path / name).convert("RGB"), dtype=int) for name in ("a.png", "b.png")]
    changed = np.abs(pictures[0] - pictures[1]).sum(axis=-1) > 100
    assert 0.3 / size < changed.mean() < 1.2 / size


def test_a_cell_of_the_picture_is_a_share_of_its_class(tmp_path, monkeypatch):
    shown = []
    imshow = Axes.imshow
    monkeypatch.setattr(
        Axes, "imshow", lambda axes, cells, **kwargs: shown.append(cells) or imshow(axes, cells, **kwargs)
    )
    draw_confusion_matrix(tmp_path / "a.png", np.array([[6, 2, 0], [0, 1, 0], [0, 0, 0]]), list("abc"))
    assert shown[0].tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]


def test_the_logarithm_of_zero_is_a_number():
    logarithms = log_probabilities(np.array([0.0, 0.5, 1.0], np.float32))
    assert logarithms.dtype == np.float64
    assert np.isfinite(logarithms).all()
    assert logarithms[0] < -700
    np.testing.assert_allclose(logarithms[1:], [np.log(0.5), 0])


def test_names_cannot_break_the_results(random_predictions, tmp_path):
    """Names with mathematics, line breaks and YAML, and a password in an address."""
    names = ["$\\foo$", "a\nb", "c: [d", 'e "f"', "<b>", "g,h;i"]
    config = tiny_config(num_labels=6)
    config.id2label = dict(enumerate(names))
    about = {"model": "m", "dataset": "https://user:secret@host/$\\bar$", "split": "a: b\n---"}
    write_evaluation(tmp_path, random_predictions, config, about)
    with (tmp_path / "classes.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == names
    card = yaml.safe_load((tmp_path / "model_card.yaml").read_text())
    assert {entry.dataset_split for entry in model_index_to_eval_results(card["model-index"])[1]} == {"a: b\n---"}
    for name in ("results.json", "model_card.yaml"):
        assert "secret" not in (tmp_path / name).read_text()


def test_classes_of_another_dataset_are_refused(data, model):
    rows = load_video_dataset(data, label_column=["verb", "noun"])["test"]
    check_classes(model.config, rows, ["verb", "noun"])
    with pytest.raises(
        ValueError, match=r"dataset of 5 classes whose class 0 is 'noun: plate', expected the model's 5 with"
    ):
        check_classes(model.config, rows, ["noun", "verb"])
    with pytest.raises(ValueError, match=r"dataset of 3 classes whose class 0 is 'plate', expected the model's 5"):
        check_classes(model.config, rows, ["noun"])
