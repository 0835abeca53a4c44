"""Shares of explained variance against loops over tokens, and as a trainer's metrics."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from builders import CLIPS, MODEL, make_trainer

from transformers_lvmae import LVMAEConfig, LVMAEForPreTraining
from transformers_lvmae.data import load_video_dataset
from transformers_lvmae.targets.explained_variance import (
    OFFSETS,
    ExplainedVariance,
    nearest_visible,
    neighbor_features,
    squared_errors,
)


GRID = (3, 4, 5)
PLACES = list(itertools.product(*map(range, GRID)))


def naive_shares(predicted, targets, masked, decoded):
    """Predictions (B, N, C) and targets (B, N, C), bool (B, N) twice -> the three shares, token by token."""
    chosen = [[n for n in range(targets.shape[1]) if masked[b, n] and decoded[b, n]] for b in range(len(targets))]
    used = [b for b in range(len(targets)) if chosen[b]]

    def error_of(predict):
        errors = [np.mean([np.mean((predict(b, n) - targets[b, n]) ** 2) for n in chosen[b]]) for b in used]
        return float(np.mean(errors))

    clip = {b: np.mean([targets[b, n] for n in chosen[b]], axis=0) for b in used}
    constant = np.mean([clip[b] for b in used], axis=0)

    def copied(b, n):
        seen = [m for m in range(targets.shape[1]) if not masked[b, m]]
        return targets[b, min(seen, key=lambda m: (math.dist(PLACES[m], PLACES[n]), m))]

    error = error_of(lambda b, n: predicted[b, n])
    return {
        "explained_beyond_global_mean": 1 - error / error_of(lambda b, n: constant),
        "explained_beyond_clip_mean": 1 - error / error_of(lambda b, n: clip[b]),
        "explained_beyond_nearest_visible": 1 - error / error_of(copied),
    }


def drawn(clips=5):
    generator = np.random.default_rng(0)
    targets = generator.normal(size=(clips, 60, 2)) + generator.normal(size=(clips, 1, 2))
    predicted = targets + 0.5 * generator.normal(size=targets.shape)
    masked = np.stack([generator.permutation(60) < 45 for _ in range(clips)])
    decoded = np.stack([generator.permutation(60) < 20 for _ in range(clips)])
    decoded[1] = masked[1] = np.arange(60) < 20
    return predicted, targets, masked, decoded


def measured(explained, predicted, targets, masked, decoded):
    predicted, targets, masked, decoded = map(torch.from_numpy, (predicted, targets, masked, decoded))
    for row in range(len(targets)):
        here, seen = decoded[row].nonzero()[None, :, 0], (~masked[row]).nonzero()[None, :, 0]
        wanted, counted = targets[row][here], masked[row][here]
        copied = targets[row][seen[0][nearest_visible(here, seen, GRID)]]
        explained.add(squared_errors(predicted[row][here], wanted, counted), wanted, counted)
        explained.add_nearest(squared_errors(copied, wanted, counted))
    return explained


def test_shares_are_those_of_loops_over_tokens():
    arrays = drawn()
    arrays[3][2] = ~arrays[2][2]  # a clip whose decoded tokens are all visible counts for nothing
    shares = measured(ExplainedVariance(), *arrays).pop(Accelerator(cpu=True))
    assert shares == pytest.approx(naive_shares(*arrays))
    assert 0.5 < shares["explained_beyond_clip_mean"] < shares["explained_beyond_global_mean"] < 1


def test_sums_of_two_processes_are_those_of_one():
    class Both:
        """Adds what another process has."""

        def __init__(self, other):
            self.other = other

        def reduce(self, value, how):
            assert how == "sum"
            return value + self.other.pop(0)

    arrays = drawn()
    first, second = (
        measured(ExplainedVariance(), *(array[part] for array in arrays)) for part in (slice(3), slice(3, 5))
    )
    shares = first.pop(Both([second.sums[name] for name in sorted(second.sums)]))
    assert shares == pytest.approx(naive_shares(*arrays))
    assert first.pop(Accelerator(cpu=True)) == {}


def test_a_predictor_without_error_gives_no_share():
    explained, still = ExplainedVariance(), torch.ones(2, 4, 3)
    counted = torch.ones(2, 4, dtype=torch.bool)
    explained.add(squared_errors(still + 1, still, counted), still, counted)
    assert explained.pop(Accelerator(cpu=True)) == {}


def test_neighbors_are_the_26_around_a_token():
    targets = torch.arange(60.0).unsqueeze(1) + 1
    features = neighbor_features(targets, GRID)
    for token in (0, 33, 59):
        for number, offset in enumerate(OFFSETS):
            place = tuple(a + b for a, b in zip(PLACES[token], offset))
            expected = [PLACES.index(place) + 1, 1] if place in PLACES else [0, 0]
            assert features[token, 2 * number : 2 * number + 2].tolist() == expected
        assert features[token, -1] == 1
    assert len(OFFSETS) == 26


def test_the_neighbors_share_is_least_squares_and_left_out_for_few_tokens():
    grid = (6, 10, 10)
    smooth = torch.nn.functional.avg_pool3d(torch.randn(4, 2, 8, 12, 12), 3, 1).flatten(2).mT.double()
    chosen = torch.rand(4, 600) < 0.6
    explained, inputs, outputs = ExplainedVariance(), [], []
    for row in range(4):
        wanted = smooth[row][chosen[row]][None]
        counted = torch.ones(wanted.shape[:2], dtype=torch.bool)
        explained.add(squared_errors(torch.zeros_like(wanted), wanted, counted), wanted, counted)
        explained.add_neighbors(smooth[row], chosen[row], grid)
        weight = chosen[row].sum() ** -0.5
        inputs.append(weight * neighbor_features(smooth[row], grid)[chosen[row]])
        outputs.append(weight * wanted[0])
    inputs, outputs = torch.cat(inputs), torch.cat(outputs)
    left = outputs - inputs @ torch.linalg.lstsq(inputs, outputs, driver="gelsd").solution
    clip = sum(smooth[row][chosen[row]].var(dim=0, correction=0).mean() for row in range(4))
    expected = 1 - (left.square().sum(dim=0).mean() / clip).item()
    assert explained.pop(Accelerator(cpu=True))["neighbors_beyond_clip_mean"] == pytest.approx(expected, abs=1e-6)
    assert expected > 0.5
    wanted = smooth[:1, :100]
    counted = torch.ones(1, 100, dtype=torch.bool)
    explained.add(squared_errors(torch.zeros_like(wanted), wanted, counted), wanted, counted)
    explained.add_neighbors(smooth[0], torch.arange(600) < 100, grid)
    assert "neighbors_beyond_clip_mean" not in explained.pop(Accelerator(cpu=True))


@pytest.mark.parametrize("kind", ["codes", "levels", "pixels"])
def test_an_evaluation_has_the_shares_of_its_own_predictions(kind, tmp_path):
    """Six clips in batches of four; the loss of codes and pixels is the error of the shares."""
    splits = load_video_dataset(CLIPS, label_column="label")
    torch.manual_seed(0)
    model = LVMAEForPreTraining(LVMAEConfig(**{**MODEL.to_dict(), "target_type": kind}))
    options = {"per_device_eval_batch_size": 4, "max_steps": 2, "logging_steps": 1}
    trainer = make_trainer("pretraining", splits, tmp_path, model=model, **options)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(("explained_beyond_clip_mean" in entry) == (kind == "codes") for entry in logged)
    kept, forward = [], model.forward

    def keep(**inputs):
        outputs = forward(**inputs)
        kept.append((inputs, outputs))
        return outputs

    model.forward = keep
    metrics = trainer.evaluate()
    predicted, targets, masked, decoded = [], [], [], []
    for inputs, outputs in kept:
        everything = torch.arange(64).expand(len(outputs.logits), 64)
        target = model.gather_targets(inputs["pixel_values_videos"], inputs.get("target_codes"), everything)
        values = outputs.logits if kind != "levels" else model.predicted_codes(outputs.logits)
        spread = torch.zeros_like(target)
        spread[outputs.bool_decoded_pos] = values.flatten(0, 1)
        for parts, part in zip(
            (predicted, targets, masked, decoded), (spread, target, outputs.bool_masked_pos, outputs.bool_decoded_pos)
        ):
            parts.append(part.numpy())
    assert [len(part) for part in targets] == [4, 2]
    arrays = [np.concatenate(parts) for parts in (predicted, targets, masked, decoded)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "PLACES", list(itertools.product(range(4), repeat=3)))
        expected = naive_shares(*arrays)
    assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-5)
    if kind != "levels":
        error = np.mean([((a - b) ** 2).mean() for a, b in zip(*(_chosen(array, arrays) for array in arrays[:2]))])
        assert error == pytest.approx(metrics["eval_loss"], rel=1e-4)
    trainer.create_model_card()
    assert "explained_beyond_clip_mean" in (tmp_path / "README.md").read_text()
    assert json.dumps(metrics)


def test_clips_that_cannot_be_read_explain_nothing(tmp_path):
    trainer = make_trainer("pretraining", load_video_dataset(CLIPS, label_column="label"), tmp_path)
    batch = trainer.data_collator([trainer.eval_dataset[number] for number in range(3)])
    trainer.model.eval()
    for readable, clips in (([True, False, True], 2), ([False, False, False], 0)):
        trainer._explained["evaluation"] = ExplainedVariance()
        trainer.prediction_step(trainer.model, {**batch, "is_readable": torch.tensor(readable)}, True)
        assert trainer._explained["evaluation"].sums["clips"] == clips


def _chosen(array, arrays):
    return [array[row][arrays[2][row] & arrays[3][row]] for row in range(len(array))]
