"""Accuracies against scikit-learn's and a loop over every combination, and as a metric of `evaluate` without network."""

import evaluate
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from transformers_lvmae.evaluation import evaluate_metric
from transformers_lvmae.evaluation.accuracy import topk_accuracies


SETS = {"noun": [7, 19], "verb": [0, 7]}  # not in the order of their columns, as a sorted json has them


@pytest.fixture
def verbs_and_nouns():
    generator = np.random.default_rng(0)
    labels = np.stack([generator.integers(0, 7, 300), generator.integers(0, 12, 300)], axis=1)
    logits = generator.normal(size=(300, 19))
    for column, first in enumerate((0, 7)):
        logits[np.arange(300), first + labels[:, column]] += 1.5
    return logits, labels


def naive_hits(logits, labels, k):
    """Which rows have their verb and noun among the k most probable pairs, pair by pair."""
    hits = []
    for row, (verb, noun) in zip(logits, labels):
        p_verb, p_noun = (np.exp(part) / np.exp(part).sum() for part in (row[:7], row[7:]))
        pairs = [(p_verb[i] * p_noun[j], -i, -j) for i in range(7) for j in range(12)]
        best = [(-i, -j) for _, i, j in sorted(pairs, reverse=True)[:k]]
        hits.append((verb, noun) in best)
    return np.asarray(hits)


def test_one_label_equals_scikit_learn():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(200, 9)), generator.integers(0, 9, 200)
    metrics = topk_accuracies(logits, labels)
    assert metrics == {
        "accuracy": top_k_accuracy_score(labels, logits, k=1),
        "top5_accuracy": top_k_accuracy_score(labels, logits, k=5),
    }


def test_each_label_set_equals_scikit_learn(verbs_and_nouns):
    logits, labels = verbs_and_nouns
    metrics = topk_accuracies(logits, labels, SETS)
    for column, (name, part) in enumerate({"verb": logits[:, :7], "noun": logits[:, 7:]}.items()):
        assert metrics[f"{name}_accuracy"] == top_k_accuracy_score(labels[:, column], part, k=1)
        assert metrics[f"{name}_top5_accuracy"] == top_k_accuracy_score(labels[:, column], part, k=5)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_an_action_s_accuracy_equals_a_loop_over_all_pairs(verbs_and_nouns, k):
    logits, labels = verbs_and_nouns
    name = "action_accuracy" if k == 1 else f"action_top{k}_accuracy"
    expected = naive_hits(logits, labels, k).mean()
    assert 0.1 < expected < 1
    assert topk_accuracies(logits, labels, SETS, ks=(k,))[name] == expected


def test_equal_scores_count_in_the_order_of_their_numbers():
    """Nothing is right by luck: of equal scores the first class is the prediction, and the first pair."""
    logits = np.zeros((2, 5))
    assert topk_accuracies(logits, np.array([0, 1]), ks=(1, 2)) == {"accuracy": 0.5, "top2_accuracy": 1.0}
    pairs = topk_accuracies(logits, np.array([[0, 1], [1, 0]]), {"verb": [0, 2], "noun": [2, 5]}, ks=(1, 2, 3, 4))
    assert [pairs[f"action_top{k}_accuracy"] for k in (2, 3, 4)] == [0.5, 0.5, 1.0]


def test_each_set_may_be_normalized_or_not(verbs_and_nouns):
    logits, labels = verbs_and_nouns
    shifted = logits + np.where(np.arange(19) < 7, -3.0, 40.0)
    assert topk_accuracies(shifted, labels, SETS) == topk_accuracies(logits, labels, SETS)


def test_the_metric_module_loads_from_its_path(verbs_and_nouns):
    """In two batches, offline, with the same numbers."""
    logits, labels = verbs_and_nouns
    metric = evaluate.load(evaluate_metric.__file__)
    for part in (slice(0, 100), slice(100, None)):
        metric.add_batch(predictions=logits[part], references=labels[part])
    assert metric.compute(label_sets=SETS) == topk_accuracies(logits.astype(np.float32), labels, SETS)
    one = evaluate.load(evaluate_metric.__file__).compute(predictions=logits[:, :7], references=labels[:, 0], ks=[2])
    assert one == topk_accuracies(logits[:, :7].astype(np.float32), labels[:, 0], ks=[2])


def test_label_sets_are_those_of_their_columns(verbs_and_nouns):
    """Whatever their names and their order in the dict: the first column of labels is the first slice's."""
    logits, labels = verbs_and_nouns
    other = topk_accuracies(logits, labels, {"a_noun": [7, 19], "the_verb": [0, 7]})
    expected = topk_accuracies(logits, labels, SETS)
    assert other["the_verb_accuracy"] == expected["verb_accuracy"]
    assert other["action_accuracy"] == expected["action_accuracy"]


def test_no_clips_have_no_accuracy():
    with pytest.raises(ValueError, match=r"Got 0 rows of logits .* and at least one"):
        topk_accuracies(np.zeros((0, 5)), np.zeros(0, int))


@pytest.mark.parametrize("labels", [np.zeros(4, int), np.zeros((3, 2), int), np.zeros((4, 3), int)])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(ValueError, match=r"Got 4 rows of logits and labels of shape .* expected \(4, 2\)"):
        topk_accuracies(np.zeros((4, 5)), labels, {"verb": [0, 2], "noun": [2, 5]})


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_wrong_and_counted(fault, verbs_and_nouns, caplog):
    """A diverged checkpoint predicts nothing: it scores 0, also where k reaches the number of classes."""
    logits, labels = verbs_and_nouns
    diverged = np.full((4, 3), fault)
    assert topk_accuracies(diverged, np.arange(4) % 3) == {"accuracy": 0.0, "top5_accuracy": 0.0, "non_finite": 4}
    assert "not finite for 4 of 4 clips" in caplog.text
    bad = logits.copy()
    bad[:100, 7:] = fault  # the verbs are good
    metrics, whole = topk_accuracies(bad, labels, SETS), topk_accuracies(logits, labels, SETS)
    assert metrics.pop("non_finite") == 100
    for name, value in topk_accuracies(logits[100:], labels[100:], SETS).items():
        expected = whole[name] if name.startswith("verb") else value * 200 / 300
        assert metrics[name] == pytest.approx(expected)


def test_one_nan_makes_the_row_wrong_and_minus_infinity_is_the_probability_zero():
    logits = np.array([[2.0, 1.0, np.nan], [2.0, 1.0, -np.inf], [-np.inf, 1.0, 0.0]])
    metrics = topk_accuracies(logits, np.array([0, 0, 0]), ks=(1, 3))
    assert metrics == {"accuracy": 1 / 3, "top3_accuracy": 2 / 3, "non_finite": 1}
