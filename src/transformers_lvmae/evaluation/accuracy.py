"""Top-k accuracy of one label, or of several label sets and their combination. `evaluate_metric.py` wraps it for `evaluate`.

A row with NaN or +inf among its scores, or with -inf alone, predicts nothing. It counts as wrong for every k. -inf beside finite scores
is the logarithm of the probability 0.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from transformers.utils import logging


logger = logging.get_logger(__name__)

JOINT_NAME = "action"  # EPIC-Kitchens calls the pair of a verb and a noun an action


def predicts(scores: np.ndarray) -> np.ndarray:
    """Return True for each row (B,) of `scores` (B, C) that has a prediction: no NaN, no +inf, and a finite score."""
    return np.asarray((scores < np.inf).all(axis=1) & (scores > -np.inf).any(axis=1))


def ranks(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the rank (B,) of the right class, 0 = first, when classes are sorted by `scores` (B, C), highest first.

    A row without a prediction ([`predicts`]) has the rank 2**31 - 1.

    Args:
        classes: the right class of each row (B,). Of equal scores, the lower class comes first.
    """
    right = np.take_along_axis(scores, classes[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < classes[:, None]
    found = ((scores > right) | ((scores == right) & earlier)).sum(axis=1)
    return np.where(predicts(scores), found, np.iinfo(np.int32).max)


def joint_ranks(parts: Sequence[np.ndarray], labels: np.ndarray, limit: int) -> np.ndarray:
    """Return the rank (B,) of the right combination, 0 = first, among all combinations of one class of each set; at most `limit`.

    The probability of a combination is the product of its classes' probabilities. Its score is the sum of their logits, because the
    softmax of a set changes all scores by the same number. The number of a combination has the first set's class as its highest
    digit. Only the `limit` best classes of each set are combined: no other class can be part of the `limit` best combinations.

    Args:
        parts: logits (B, C) of each set, with its own C.
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
    found = (numbers == right) & np.logical_and.reduce([predicts(part) for part in parts])[:, None]
    return np.where(found.any(axis=1), np.minimum(ranks(scores, found.argmax(axis=1)), limit), limit)


def topk_accuracies(
    logits: np.ndarray,
    labels: np.ndarray,
    label_sets: Mapping[str, Sequence[int]] | None = None,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Return the share of clips whose class is among the k highest logits. Of equal logits, the lower class comes first.

    Args:
        logits: (B, C) logits or logarithms of probabilities; without `label_sets`, also probabilities.
        labels: class ids (B,), or (B, sets) with `label_sets`.
        label_sets: {name: [first, end)}, the columns of each set's classes, as `LVMAEConfig.label_sets`.
        ks: the values of k.

    Returns:
        `accuracy` and `top5_accuracy`. With `label_sets`, both for each set and for `action`, the combination of one class of each
        set: `verb_accuracy`, ..., `action_top5_accuracy`. If there are rows without a prediction ([`predicts`]), their number as
        `non_finite`, and a warning.

    Raises:
        ValueError: there are no clips, or the shapes of labels and logits do not fit.
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
        return _shares("", ranks(logits, labels), ks) | _count_non_finite([logits])
    parts = [logits[:, first:end] for _, (first, end) in ranges]
    shares: dict[str, float] = {}
    for (name, _), part, column in zip(ranges, parts, labels.T):
        shares |= _shares(f"{name}_", ranks(part, column), ks)
    return shares | _shares(f"{JOINT_NAME}_", joint_ranks(parts, labels, max(ks)), ks) | _count_non_finite(parts)


def _shares(prefix: str, rank: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    return {f"{prefix}accuracy" if k == 1 else f"{prefix}top{k}_accuracy": float((rank < k).mean()) for k in ks}


def _count_non_finite(parts: Sequence[np.ndarray]) -> dict[str, float]:
    """Return {"non_finite": number of rows without a prediction in some set}, or {} if there are none."""
    count = int((~np.logical_and.reduce([predicts(part) for part in parts])).sum())
    if count:
        logger.warning(
            f"Got scores that are not finite for {count} of {len(parts[0])} clips, expected numbers: these clips count as wrong. The "
            "model has diverged, or its precision is too low."
        )
    return {"non_finite": count} if count else {}
