"""Top-k accuracy of one label, or of several label sets and of all of them at once. `evaluate_metric.py` makes a metric of it."""

from collections.abc import Mapping, Sequence

import numpy as np


JOINT_NAME = "action"  # what EPIC-Kitchens calls a verb and a noun that are both right


def ranks(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How many classes come before the right one, `classes` (B,), in a stable descending order of `scores` (B, C): (B,)."""
    right = np.take_along_axis(scores, classes[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < classes[:, None]
    return ((scores > right) | ((scores == right) & earlier)).sum(axis=1)


def joint_ranks(parts: Sequence[np.ndarray], labels: np.ndarray, limit: int) -> np.ndarray:
    """Rank of the right combination among all combinations of one class of each set, where it is below `limit`; else `limit`.

    A combination's probability is the product of its classes' probabilities, so that its score is the sum of their logits: no
    set's normalisation changes the order. The first set's class is the slowest number of a combination. A class that is not
    among its set's `limit` best is in none of the `limit` best combinations, so that no others are looked at.

    Args:
        parts: logits of each set, (B, C) with its own C.
        labels: (B, sets).
    """
    count = len(labels)
    scores, numbers, right = np.zeros((count, 1)), np.zeros((count, 1), np.int64), np.zeros((count, 1), np.int64)
    for part, column in zip(parts, labels.T):
        best = np.sort(np.argsort(-part, axis=1, kind="stable")[:, :limit], axis=1)
        best_scores = np.take_along_axis(part, best, axis=1).astype(np.float64)
        scores = (scores[:, :, None] + best_scores[:, None]).reshape(count, -1)
        numbers = (numbers[:, :, None] * part.shape[1] + best[:, None]).reshape(count, -1)
        right = right * part.shape[1] + column[:, None]
    found = numbers == right
    return np.where(found.any(axis=1), np.minimum(ranks(scores, found.argmax(axis=1)), limit), limit)


def topk_accuracies(
    logits: np.ndarray,
    labels: np.ndarray,
    label_sets: Mapping[str, Sequence[int]] | None = None,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Shares of clips whose class is among the k highest logits; of equal logits the lower class comes first.

    Args:
        logits: (B, C); logits, logarithms of probabilities, or, without `label_sets`, probabilities.
        labels: (B,), or (B, sets) with `label_sets`.
        label_sets: {name: [first, end)}, the columns of each set's classes, as `LVMAEConfig.label_sets`.
        ks: numbers k.

    Returns:
        `accuracy`, `top5_accuracy`; with `label_sets` each of them for each set and for `action`, the combination of one class
        of each: `verb_accuracy`, ..., `action_top5_accuracy`.

    Raises:
        ValueError: no clips, or labels and logits that do not fit together.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    ranges = sorted(label_sets.items(), key=lambda item: list(item[1])) if label_sets else []
    expected = (len(logits), len(ranges)) if ranges else (len(logits),)
    if labels.shape != expected or not len(logits):
        raise ValueError(
            f"Got {len(logits)} rows of logits and labels of shape {labels.shape}, expected {expected} and at least one: give one "
            "label for each clip and label set."
        )
    if not ranges:
        return _shares("", ranks(logits, labels), ks)
    parts = [logits[:, first:end] for _, (first, end) in ranges]
    shares: dict[str, float] = {}
    for (name, _), part, column in zip(ranges, parts, labels.T):
        shares |= _shares(f"{name}_", ranks(part, column), ks)
    return shares | _shares(f"{JOINT_NAME}_", joint_ranks(parts, labels, max(ks)), ks)


def _shares(prefix: str, rank: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    return {f"{prefix}accuracy" if k == 1 else f"{prefix}top{k}_accuracy": float((rank < k).mean()) for k in ks}
