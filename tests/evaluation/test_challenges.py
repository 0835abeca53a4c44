"""Metrics and files of the benchmarks, beside naive computations from the same predictions file."""

import csv
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from builders import load_script

from transformers_lvmae.data.annotations import AnnotationError
from transformers_lvmae.evaluation.challenges import epic_metrics, write_epic_submission


VERBS, NOUNS, SEGMENTS = 13, 21, 60
RARE = {"verb": [3, 4, 9, 12], "noun": [0, 7, 8, 15, 20]}
LEVELS = {"sls_pt": 3, "sls_tl": 3, "sls_td": 4}


@pytest.fixture
def segments():
    """Rows of a predictions file. The right classes have somewhat higher probabilities than others."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(SEGMENTS):
        row = {"narration_id": f"P01_{number}", "participant_id": ["P01", "P18", "P32"][number % 3]}
        for name, classes in (("verb", VERBS), ("noun", NOUNS)):
            row[name] = int(generator.integers(classes))
            logits = generator.normal(size=classes)
            logits[row[name]] += 1.5
            row[f"{name}_probabilities"] = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32).tolist()
        rows.append(row)
    return rows


def save(rows, path):
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def annotations(tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    lists = {"tail_verbs": ("verb", RARE["verb"]), "tail_nouns": ("noun", RARE["noun"])}
    lists["unseen_participant_ids_validation"] = ("participant_id", ["P18", "P32"])
    for name, (column, values) in lists.items():
        (folder / f"EPIC_100_{name}.csv").write_text("\n".join([column, *map(str, values)]) + "\n")
    return folder


def naive_hits(row, name, k):
    """Whether the right class is among the k most probable; for actions, pair by pair."""
    if name != "action":
        scores = row[f"{name}_probabilities"]
        return row[name] in sorted(range(len(scores)), key=lambda number: -scores[number])[:k]
    pairs = {
        (v, n): p * q for v, p in enumerate(row["verb_probabilities"]) for n, q in enumerate(row["noun_probabilities"])
    }
    return (row["verb"], row["noun"]) in sorted(pairs, key=lambda pair: -pairs[pair])[:k]


def share(rows, name, k=1):
    return sum(naive_hits(row, name, k) for row in rows) / len(rows)


def test_epic_s_metrics_are_those_of_a_loop(segments, annotations, tmp_path, capsys):
    """The authors' definitions: a segment is in the actions' tail if its verb or its noun is rare."""
    segments[5]["verb_probabilities"] = segments[5]["noun_probabilities"] = None  # could not be read
    segments[6]["noun"] = None
    used = [row for number, row in enumerate(segments) if number not in (5, 6)]
    path = save(segments, tmp_path / "predictions.parquet")
    load_script("challenge").main(["epic_metrics", str(path), str(annotations)])
    found = json.loads(capsys.readouterr().out)
    assert (found["segments"], found["segments_total"]) == (58, 60)
    unseen = [row for row in used if row["participant_id"] in ("P18", "P32")]
    tails = {name: [row for row in used if row[name] in RARE[name]] for name in RARE}
    tails["action"] = [row for row in used if row["verb"] in RARE["verb"] or row["noun"] in RARE["noun"]]
    for name in ("verb", "noun", "action"):
        assert found[f"{name}_accuracy"] == pytest.approx(share(used, name))
        assert found[f"{name}_top5_accuracy"] == pytest.approx(share(used, name, 5))
        assert found[f"unseen_{name}_accuracy"] == pytest.approx(share(unseen, name))
        assert found[f"tail_{name}_accuracy"] == pytest.approx(share(tails[name], name))
        assert 0 < found[f"tail_{name}_accuracy"] < 1
    for row in segments:
        row["participant_id"] = "P01"
    assert epic_metrics(save(segments, path), annotations)["unseen_verb_accuracy"] is None
    (annotations / "EPIC_100_tail_nouns.csv").unlink()
    with pytest.raises(AnnotationError, match=r"Got \[\] for 'noun', expected one file"):
        epic_metrics(path, annotations)


def test_epic_s_submission_is_what_the_challenge_reads(segments, tmp_path, capsys):
    path, output = save(segments, tmp_path / "predictions.parquet"), tmp_path / "submission.zip"
    options = [part for name, level in LEVELS.items() for part in (f"--{name}", str(level))]
    load_script("challenge").main(["epic_submission", str(path), str(output), *options])
    assert "60 segments" in capsys.readouterr().out
    with zipfile.ZipFile(output) as file:
        assert file.namelist() == ["test.json"]
        found = json.loads(file.read("test.json"))
    results = found.pop("results")
    assert found == {"version": "0.2", "challenge": "action_recognition", **LEVELS}
    assert list(results) == [row["narration_id"] for row in segments]
    for row in segments:
        scores = results[row["narration_id"]]
        for name, count in (("verb", VERBS), ("noun", NOUNS)):
            assert list(scores[name]) == [str(number) for number in range(count)]
            softmax = np.exp(list(scores[name].values()))
            np.testing.assert_allclose(softmax / softmax.sum(), row[f"{name}_probabilities"], rtol=1e-5)
        assert len(scores["action"]) == 100
        ranked = sorted(scores["action"], key=lambda pair: -scores["action"][pair])
        assert ([int(number) for number in ranked[0].split(",")] == [row["verb"], row["noun"]]) == naive_hits(
            row, "action", 1
        )
        verb, noun = map(int, ranked[99].split(","))
        expected = row["verb_probabilities"][verb] * row["noun_probabilities"][noun]
        assert scores["action"][ranked[99]] == pytest.approx(expected, rel=1e-6)


def test_something_something_s_lines_are_an_id_and_five_classes(segments, tmp_path):
    rows = [
        {"id": str(900 - n), "label": None, "probabilities": row["noun_probabilities"]}
        for n, row in enumerate(segments)
    ]
    path, output = save(rows, tmp_path / "predictions.parquet"), tmp_path / "submission.csv"
    load_script("challenge").main(["ssv2_submission", str(path), str(output)])
    lines = list(csv.reader(output.open(), delimiter=";"))
    for row, line in zip(rows, lines, strict=True):
        scores = row["probabilities"]
        assert line == [row["id"], *map(str, sorted(range(NOUNS), key=lambda number: -scores[number])[:5])]


def test_rows_that_cannot_be_submitted_are_named(segments, tmp_path):
    path = tmp_path / "predictions.parquet"
    for change, message in [
        ({"verb_probabilities": None}, r"Got 1 rows without finite probabilities .*\(P01_3\)"),
        ({"noun_probabilities": [float("nan")] * NOUNS}, "Got 1 rows without finite probabilities"),
        ({"narration_id": "P01_4"}, r"Got 1 rows with a repeated narration_id .*\(P01_4\)"),
    ]:
        save([row if number != 3 else {**row, **change} for number, row in enumerate(segments)], path)
        with pytest.raises(ValueError, match=message):
            load_script("challenge").main(
                ["epic_submission", str(path), "x", "--sls_pt", "1", "--sls_tl", "1", "--sls_td", "1"]
            )
    save([{name: value for name, value in row.items() if name != "narration_id"} for row in segments], path)
    with pytest.raises(ValueError, match="expected 'narration_id'"):
        write_epic_submission(tmp_path / "x", path, LEVELS)
    with pytest.raises(ValueError, match="Got sls_td=6, expected a level from 0 to 5"):
        write_epic_submission(tmp_path / "x", path, {**LEVELS, "sls_td": 6})
    with pytest.raises(SystemExit):
        load_script("challenge").main(["epic_submission", str(path), "x"])
