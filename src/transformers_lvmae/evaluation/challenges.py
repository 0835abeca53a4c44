"""Metrics and submission files of benchmarks, from a predictions file (`prediction_files`).

EPIC-Kitchens-100: the metrics of the authors' evaluation (github.com/epic-kitchens/C1-Action-Recognition) and the challenge's JSON.
Something-Something v2: the CSV of its leaderboard.
"""

import csv
import io
import json
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ..data.annotation_files import find_annotations, the_file
from ..data.tables import read_rows
from ..files import write_aside
from .accuracy import JOINT_NAME, topk_accuracies
from .prediction_files import read_predictions
from .reports import log_probabilities


EPIC_LISTS = {
    "verb": r"EPIC_100_tail_verbs\.csv",
    "noun": r"EPIC_100_tail_nouns\.csv",
    "participant_id": r"EPIC_100_unseen_participant_ids_validation\.csv",
}
ACTIONS_SUBMITTED = 100
ANSWERS_SUBMITTED = 5
SUPERVISION = ("sls_pt", "sls_tl", "sls_td")


def _arrays(rows: dict[str, list[Any]], names: tuple[str, ...], chosen: np.ndarray) -> list[np.ndarray]:
    """Return float64 arrays (n, C) of the chosen rows' probabilities, one for each name."""
    return [np.asarray([rows[f"{name}_probabilities"][row] for row in chosen], np.float64) for name in names]


def epic_metrics(predictions: str | os.PathLike, annotations: str | os.PathLike) -> dict[str, Any]:
    """Compute EPIC-Kitchens-100's metrics, as shares.

    `verb_accuracy`, `verb_top5_accuracy`, ... of all segments; `unseen_verb_accuracy`, ... of the participants that training lacks;
    `tail_verb_accuracy`, ... of rare classes. A segment counts for the tail's actions if its verb or its noun is rare. An action's
    probability is that of its verb times that of its noun. `segments` were evaluated, of `segments_total`; the others have no label,
    or a video that cannot be read.

    Args:
        predictions: file that [`write_predictions`] wrote, with `participant_id`.
        annotations: folder with the authors' lists of rare classes and unseen participants.

    Raises:
        ValueError: a column is missing, or no segment has both a label and a prediction.
        AnnotationError: a list is missing or has another format.
    """
    sets = ("verb", "noun")
    rows = read_predictions(predictions, [*sets, "verb_probabilities", "noun_probabilities", "participant_id"])
    usable = zip(rows["verb"], rows["noun"], rows["verb_probabilities"])
    chosen = np.flatnonzero([None not in (verb, noun) and scores is not None for verb, noun, scores in usable])
    if not len(chosen):
        raise ValueError(
            f"Got no row with labels and probabilities in {predictions}, expected some: evaluate a split with labels."
        )
    verbs, nouns = _arrays(rows, sets, chosen)
    logits, labels = log_probabilities(np.concatenate([verbs, nouns], axis=1)), _labels(rows, sets, chosen)
    ends = verbs.shape[1], verbs.shape[1] + nouns.shape[1]
    label_sets = {"verb": [0, ends[0]], "noun": [ends[0], ends[1]]}
    metrics: dict[str, Any] = {"segments": len(chosen), "segments_total": len(rows["verb"])}
    metrics |= topk_accuracies(logits, labels, label_sets)

    files = find_annotations([annotations], EPIC_LISTS)
    lists = {name: {row[name] for row in read_rows(the_file(files, name), [name])} for name in EPIC_LISTS}
    is_unseen = np.asarray([rows["participant_id"][row] in lists["participant_id"] for row in chosen])
    rare = [np.isin(labels[:, number], list(map(int, lists[name]))) for number, name in enumerate(sets)]
    tails = dict(zip(sets, rare)) | {JOINT_NAME: rare[0] | rare[1]}
    for kind, masks in {"unseen": dict.fromkeys(tails, is_unseen), "tail": tails}.items():
        for name, mask in masks.items():
            shares = topk_accuracies(logits[mask], labels[mask], label_sets, ks=(1,)) if mask.any() else {}
            metrics[f"{kind}_{name}_accuracy"] = shares.get(f"{name}_accuracy")
    return metrics


def _labels(rows: dict[str, list[Any]], names: tuple[str, ...], chosen: np.ndarray) -> np.ndarray:
    return np.asarray([[rows[name][row] for name in names] for row in chosen])


def write_epic_submission(
    path: str | os.PathLike,
    predictions: str | os.PathLike,
    supervision: dict[str, int],
    challenge: str = "action_recognition",
) -> int:
    """Write EPIC-Kitchens-100's submission, a zip file with test.json, and return its number of segments.

    Verbs and nouns get the logarithms of their probabilities, because the challenge applies a softmax. The 100 most probable actions get
    their probabilities.

    Args:
        predictions: file that [`write_predictions`] wrote, with `narration_id`.
        supervision: the challenge's levels of supervision, 0 to 5: `sls_pt`, `sls_tl` and `sls_td` (github.com/epic-kitchens/sls).

    Raises:
        ValueError: a column is missing, or a row has no prediction.
    """
    wrong = [name for name in SUPERVISION if not 0 <= supervision[name] <= 5]
    if wrong:
        raise ValueError(
            f"Got {wrong[0]}={supervision[wrong[0]]}, expected a level from 0 to 5: see github.com/epic-kitchens/sls."
        )
    names = ["verb_probabilities", "noun_probabilities", "narration_id"]
    rows = _complete(predictions, names, key="narration_id")
    verbs, nouns = _arrays(rows, ("verb", "noun"), np.arange(len(rows["narration_id"])))
    results = {
        segment: {
            "verb": _numbered(log_probabilities(verb)),
            "noun": _numbered(log_probabilities(noun)),
            "action": _best_actions(verb, noun),
        }
        for segment, verb, noun in zip(rows["narration_id"], verbs, nouns)
    }
    submission = {"version": "0.2", "challenge": challenge, **supervision, "results": results}

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("test.json", json.dumps(submission))

    write_aside(Path(path), write)
    return len(results)


def _numbered(scores: np.ndarray) -> dict[str, float]:
    return {str(number): score for number, score in enumerate(scores.tolist())}


def _best_actions(verbs: np.ndarray, nouns: np.ndarray) -> dict[str, float]:
    """Return the most probable pairs of a verb and a noun, as the challenge writes them: {"3,17": probability}."""
    scores = np.outer(verbs, nouns)
    best = np.argsort(-scores, axis=None, kind="stable")[:ACTIONS_SUBMITTED]
    return {f"{place // len(nouns)},{place % len(nouns)}": float(scores.flat[place]) for place in best.tolist()}


def write_ssv2_submission(path: str | os.PathLike, predictions: str | os.PathLike) -> int:
    """Write Something-Something v2's submission and return its number of videos. A line is `id;c1;c2;c3;c4;c5`: the video's id and its
    five most probable classes, as numbers of the benchmark's labels.

    Args:
        predictions: file that [`write_predictions`] wrote, with `id`.

    Raises:
        ValueError: a column is missing, or a row has no prediction.
    """
    rows = _complete(predictions, ["probabilities", "id"], key="id")
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";", lineterminator="\n")
    for video, scores in zip(rows["id"], rows["probabilities"]):
        writer.writerow([video, *np.argsort(-np.asarray(scores), kind="stable")[:ANSWERS_SUBMITTED]])
    write_aside(Path(path), text.getvalue())
    return len(rows["id"])


def _complete(predictions: str | os.PathLike, columns: list[str], key: str) -> dict[str, list[Any]]:
    """Read columns of a predictions file. A row without finite probabilities, or a repeated `key`, raises ValueError."""
    rows = read_predictions(predictions, columns)
    scores = [name for name in columns if name.endswith("probabilities")]
    lacking = [
        rows[key][row]
        for row in range(len(rows[key]))
        if any(rows[name][row] is None or not np.isfinite(rows[name][row]).all() for name in scores)
    ]
    repeated = [name for name, count in Counter(rows[key]).items() if count > 1]
    for fault, names in (("without finite probabilities", lacking), (f"with a repeated {key}", repeated)):
        if names:
            raise ValueError(
                f"Got {len(names)} rows {fault} in {predictions} ({', '.join(map(str, names[:5]))}), expected one prediction for each "
                f"{key}: repair what cannot be read and evaluate again."
            )
    return rows
