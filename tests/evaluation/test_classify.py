"""scripts/classify.py: many files, parts of them, bad ones among them, and models that cannot answer."""

import csv
import json
import shutil

import pytest
import torch
from builders import CLIPS, load_script, tiny_config
from transformers import pipeline

from transformers_lvmae import LVMAEConfig, LVMAEForPreTraining, LVMAEForVideoClassification
from transformers_lvmae.data import processor_for


@pytest.fixture(scope="module")
def classify():
    return load_script("classify").main


def save(folder, model):
    model.save_pretrained(folder)
    processor_for(model.config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    model = LVMAEForVideoClassification(tiny_config(num_labels=4))
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    return save(tmp_path_factory.mktemp("model"), model)


VIDEOS = sorted(str(path) for path in (CLIPS / "test").glob("*.mp4"))[:3]


@pytest.mark.parametrize("chooses", [False, True])
def test_the_answers_are_the_pipeline_s(classify, model, chooses, tmp_path, capsys):
    if chooses:
        fields = {
            "token_keep_ratio": 0.25,
            "scorer_patch_size": 4,
            "scorer_is_trained": True,
            "image_mean": (0.4, 0.4, 0.4),
        }
        model = save(tmp_path / "chosen", LVMAEForVideoClassification(tiny_config(num_labels=4, **fields)))
    output = tmp_path / "answers.jsonl"
    assert classify([model, *VIDEOS, "--output", str(output), "--top_k", "2"]) == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["rank"] for answer in answers] == [1, 2] * 3
    classifier = pipeline("video-classification", model=model, device="cpu")
    for number, video in enumerate(VIDEOS):
        for answer, expected in zip(answers[2 * number :], classifier(video, top_k=2)):
            assert (answer["video"], answer["label"]) == (video, expected["label"])
            assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)
    printed = capsys.readouterr().out
    assert f"{VIDEOS[0]}\n  {answers[0]['label']} {answers[0]['score']:.3f}" in printed


def test_a_bad_file_does_not_stop_the_others(classify, model, tmp_path, capsys):
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    for name, source in {"a.MP4": VIDEOS[0], "more/b.mp4": VIDEOS[1]}.items():
        shutil.copy(source, folder / name)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video either")
    (folder / "._a.mp4").write_bytes(b"what macOS leaves beside a.mp4")
    output = tmp_path / "new" / "answers.csv"
    assert classify([model, "missing.mp4", str(folder), "--output", str(output), "--top_k", "1"]) == 1
    printed = capsys.readouterr()
    assert "Cannot read video missing.mp4" in printed.err
    assert "broken.mp4" in printed.err
    assert "2 of 4 videos could not be read" in printed.err
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == [str(folder / "a.MP4"), str(folder / "more" / "b.mp4")]


def test_a_part_is_classified_as_the_part_alone(classify, model, tmp_path):
    from transformers_lvmae.data import VideoClips

    output = tmp_path / "answers.jsonl"
    classify([model, VIDEOS[0], "--start", "0.4", "--end", "0.9", "--output", str(output), "--top_k", "4"])
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    loaded = LVMAEForVideoClassification.from_pretrained(model).eval()
    clips = VideoClips([{"video": VIDEOS[0], "start": 0.4, "end": 0.9}], processor_for(loaded.config), 8)
    with torch.no_grad():
        expected = loaded(clips[0]["pixel_values_videos"][None]).logits.softmax(dim=-1)[0]
    found = {answer["label"]: answer["score"] for answer in answers}
    assert [found[f"LABEL_{number}"] for number in range(4)] == pytest.approx(expected.tolist(), abs=1e-6)
    assert (answers[0]["start"], answers[0]["end"]) == (0.4, 0.9)


def test_label_sets_are_answered_one_by_one(classify, tmp_path, capsys):
    names = LVMAEConfig.label_fields({"verb": ["put", "take"], "noun": ["cup", "pan", "tap"]})
    folder = save(tmp_path, LVMAEForVideoClassification(LVMAEConfig(**{**tiny_config().to_dict(), **names})))
    assert classify([folder, VIDEOS[0], "--top_k", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == ["noun:"] * 3 + ["verb:"] * 2
    assert sum(float(line.split()[-1]) for line in lines) == pytest.approx(2, abs=0.01)


def test_models_that_cannot_answer_are_refused(classify, tmp_path):
    folder = save(tmp_path / "pretrain", LVMAEForPreTraining(tiny_config()))
    with pytest.raises(ValueError, match="with LVMAEForPreTraining, expected LVMAEForVideoClassification: its head"):
        classify([folder, VIDEOS[0]])
    diverged = LVMAEForVideoClassification(tiny_config())
    torch.nn.init.constant_(diverged.classifier.weight, float("nan"))
    folder = save(tmp_path / "diverged", diverged)
    with pytest.raises(ValueError, match=r"logits that are not finite from .*diverged, expected numbers"):
        classify([folder, VIDEOS[0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "answers.txt"], "expected a name that ends in .jsonl or .csv"),
        (["--start", "3", "--end", "2"], "expected an end after the start"),
        (["--top_k", "0"], "expected a whole number of at least 1"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options, message, classify, capsys):
    with pytest.raises(SystemExit):
        classify(["no model", "no video", *options])
    assert message in capsys.readouterr().err


def test_a_folder_without_videos_is_refused(classify, model, tmp_path):
    with pytest.raises(ValueError, match="without videos, expected at least one"):
        classify([model, str(tmp_path)])
