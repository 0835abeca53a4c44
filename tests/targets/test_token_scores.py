"""Scores that learned importance is compared with, each against a naive loop or a known motion."""

import math

import pytest
import torch
from builders import tiny_config
from torch import nn
from torchvision.models.optical_flow import raft_small

from transformers_lvmae import LVMAEModel
from transformers_lvmae.models.token_scores import (
    everest,
    frame_difference,
    random_tokens,
    split_tubes,
    uniform_frames,
)
from transformers_lvmae.targets.flow import flow_estimator
from transformers_lvmae.targets.token_scores import (
    UNLEARNED,
    SelectionCollator,
    optical_flow,
    score_tokens,
)


GRID = (3, 2, 4)  # of clips of 6 frames of 8 x 16 pixels: tokens of 2 x 4 x 4


def clip(frames: int = 6) -> torch.Tensor:
    return torch.rand(2, frames, 3, 8, 16)


def tube(pixels: torch.Tensor, slot: int, row: int, column: int) -> torch.Tensor:
    return pixels[2 * slot : 2 * slot + 2, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]


def each_token(score) -> torch.Tensor:
    """(2, N) from a function of (clip, slot, row, column)."""
    t, h, w = GRID
    return torch.tensor([[score(b, i, j, k) for i in range(t) for j in range(h) for k in range(w)] for b in range(2)])


def test_tubes_are_the_tokens_pixels():
    pixels = clip()
    tubes = split_tubes(pixels, GRID)
    assert tubes.shape == (2, *GRID, 2 * 3 * 4 * 4)
    assert torch.equal(tubes[1, 2, 1, 3], tube(pixels[1], 2, 1, 3).flatten())


def test_a_slot_that_the_clip_fills_in_part_is_held_at_the_last_frame():
    pixels = clip(5)
    assert torch.equal(split_tubes(pixels, GRID), split_tubes(torch.cat([pixels, pixels[:, -1:]], dim=1), GRID))


@pytest.mark.parametrize("grid_size", [(4, 2, 4), (3, 3, 4), (3, 2, 5)])
@pytest.mark.parametrize("name", ["motion", "everest", "flow"])
def test_grids_that_do_not_divide_the_clip_are_refused(name, grid_size):
    with pytest.raises(ValueError, match=r"Got a grid of .* for 6 frames of 8 x 16 pixels, expected .*: pass the grid"):
        score_tokens(name, clip(), grid_size)


def test_motion_is_the_mean_difference_from_the_frame_before():
    pixels = clip()
    before = torch.cat([pixels[:, :1], pixels[:, :-1]], dim=1)
    difference = (pixels - before).abs()
    difference[:, 0] = difference[:, 1]
    expected = each_token(lambda b, *token: tube(difference[b], *token).mean())
    torch.testing.assert_close(frame_difference(pixels, GRID), expected)


@pytest.mark.parametrize("embedded", [False, True], ids=["pixels", "embedding"])
def test_everest_is_the_distance_between_slots(embedded):
    pixels, projection = clip(), nn.Conv3d(3, 7, kernel_size=(2, 4, 4), stride=(2, 4, 4))

    def embed(clips):
        return projection(clips.transpose(1, 2)).flatten(2).transpose(1, 2)

    def vector(b, *token):
        values = tube(pixels[b], *token)
        return torch.einsum("tchw,dcthw->d", values, projection.weight.detach()) if embedded else values

    def score(b, slot, row, column):
        slot = max(slot, 1)
        return (vector(b, slot, row, column) - vector(b, slot - 1, row, column)).square().sum().sqrt()

    ours = everest(pixels, GRID, embed) if embedded else everest(pixels, GRID)
    torch.testing.assert_close(ours, each_token(score), rtol=1e-4, atol=1e-5)
    assert not ours.requires_grad


def test_everest_of_half_precision_is_computed_in_float32():
    pixels = clip().half()
    scores = everest(pixels, GRID)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, everest(pixels.float(), GRID))


def test_everest_takes_the_vits_own_patch_embedding():
    model, pixels = LVMAEModel(tiny_config()), torch.rand(2, 8, 3, 32, 32)
    scores = everest(pixels, model.config.grid_size, model.get_input_embeddings())
    tokens = model.get_input_embeddings()(pixels).view(2, 4, 4, 4, -1)
    expected = (tokens[:, 1:] - tokens[:, :-1]).square().sum(dim=-1).sqrt()
    torch.testing.assert_close(scores.view(2, 4, 4, 4), torch.cat([expected[:, :1], expected], dim=1))


def moving_square(velocity: tuple[int, int], size: int = 64, frames: int = 4) -> torch.Tensor:
    """A textured square of 24 pixels that moves by (x, y) pixels a frame over a textured ground: (1, T, 3, size, size)."""
    texture = nn.functional.interpolate(torch.rand(1, 3, 12, 12), size=(24, 24), mode="bilinear")[0]
    ground = nn.functional.interpolate(torch.rand(1, 3, 16, 16), size=(size, size), mode="bilinear")[0]
    clips = ground.repeat(1, frames, 1, 1, 1)
    for frame in range(frames):
        x, y = (20 + speed * frame for speed in velocity)
        clips[0, frame, :, y : y + 24, x : x + 24] = texture
    return clips


@pytest.mark.parametrize("velocity", [(2, 0), (0, -2), (1, 1)])
def test_flow_is_the_motion_in_pixels_of_the_frames_own_size(velocity):
    name, estimate = flow_estimator()
    assert name == "DIS"
    pixels = moving_square(velocity)[0]
    flow = estimate(pixels[1:], pixels[:-1])
    x, y = 20 + 2 * velocity[0], 20 + 2 * velocity[1]
    inside = flow[1, :, y + 6 : y + 18, x + 6 : x + 18].mean(dim=(1, 2))
    torch.testing.assert_close(inside, -torch.tensor(velocity).float(), atol=0.25, rtol=0)  # to where it was
    assert flow[:, :, 48:, 56:].abs().mean() < 0.1


def test_flow_scores_are_shares_of_the_mean_flow_over_both_axes_of_each_tube():
    flow = torch.randn(10, 2, 8, 16)
    pixels = clip()
    calls = []

    def estimate(frames, others):
        calls.append((frames, others))
        return flow

    scores = optical_flow(pixels, GRID, ("given", estimate))
    assert torch.equal(calls[0][0], pixels[:, 1:].flatten(0, 1))
    assert torch.equal(calls[0][1], pixels[:, :-1].flatten(0, 1))
    by_clip = flow.view(2, 5, 2, 8, 16)
    by_frame = torch.cat([by_clip[:, :1], by_clip], dim=1).abs()
    expected = each_token(lambda b, *token: tube(by_frame[b], *token).mean())
    torch.testing.assert_close(scores, expected / expected.sum(dim=1, keepdim=True))


def test_flow_finds_the_token_that_moves():
    scores = optical_flow(moving_square((2, 0)), (2, 8, 8)).view(2, 8, 8)
    assert scores.sum() == pytest.approx(1)
    assert scores[:, 2:6, 2:7].sum() > 0.8


def test_raft_runs_from_a_weights_file(tmp_path, monkeypatch):
    torch.save(raft_small().state_dict(), tmp_path / "raft.pth")
    name, estimate = flow_estimator(tmp_path / "raft.pth")
    assert name == "RAFT"
    pixels = moving_square((2, 0), frames=2)[0]
    flow = estimate(pixels[1:], pixels[:1])
    assert flow.shape == (1, 2, 64, 64)
    model = raft_small().eval()
    model.load_state_dict(torch.load(tmp_path / "raft.pth"))
    large = nn.functional.interpolate(pixels, size=(128, 128), mode="bilinear") * 2 - 1
    with torch.no_grad():
        expected = model(large[1:], large[:1])[-1]
    torch.testing.assert_close(flow, nn.functional.avg_pool2d(expected, 2) / 2, rtol=1e-3, atol=1e-4)


def test_raft_scales_x_and_y_of_the_flow_by_their_own_sides(tmp_path):
    """Frames of 36 x 64 pixels become 128 x 232, a multiple of 8: 3.56 times as high and 3.63 times as wide."""
    torch.save(raft_small().state_dict(), tmp_path / "raft.pth")
    pixels = torch.rand(2, 3, 36, 64)
    flow = flow_estimator(tmp_path / "raft.pth")[1](pixels[1:], pixels[:1])
    model = raft_small().eval()
    model.load_state_dict(torch.load(tmp_path / "raft.pth"))
    large = nn.functional.interpolate(pixels, size=(128, 232), mode="bilinear") * 2 - 1
    with torch.no_grad():
        expected = nn.functional.adaptive_avg_pool2d(model(large[1:], large[:1])[-1], (36, 64))
    torch.testing.assert_close(flow[:, 0], expected[:, 0] * 64 / 232, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(flow[:, 1], expected[:, 1] * 36 / 128, rtol=1e-3, atol=1e-4)


def test_raft_is_looked_for_in_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(raft_small().state_dict(), tmp_path / "checkpoints" / "raft_small_C_T_V2-01064c6d.pth")
    assert flow_estimator()[0] == "RAFT"
    with pytest.raises(FileNotFoundError):
        flow_estimator(tmp_path / "missing.pth")


@pytest.mark.parametrize("name", UNLEARNED)
def test_lone_frames_and_still_clips_have_finite_scores(name):
    lone = score_tokens(name, torch.rand(2, 1, 3, 8, 16), (1, 2, 4))
    still = score_tokens(name, clip(1).expand(-1, 6, -1, -1, -1), GRID)
    assert lone.shape == (2, 8)
    assert still.shape == (2, math.prod(GRID))
    assert lone.isfinite().all()
    assert still.isfinite().all()
    if name not in ("random", "uniform"):
        assert still.max() < 1e-6 or name == "flow"


@pytest.mark.parametrize("slots", [1, 2, 5, 8, 64])
def test_uniform_frames_of_any_budget_lie_about_evenly(slots):
    scores = uniform_frames(torch.rand(1, slots * 9), (slots, 3, 3))[0]
    for number in range(1, slots + 1):
        chosen = (scores.topk(9 * number).indices // 9).bincount(minlength=slots)
        assert sorted(chosen.tolist()) == [0] * (slots - number) + [9] * number
        places = chosen.nonzero().flatten()
        ends = torch.cat([places, torch.tensor([slots])])
        assert ends.diff().max() <= 2 * math.ceil(slots / number)  # to the end of the clip


def test_cells_of_a_part_of_a_slot_and_random_tokens_are_drawn_evenly():
    noise = torch.rand(4000, 16)
    partly = uniform_frames(noise, (4, 2, 2)).topk(1).indices.flatten().bincount(minlength=16)
    anywhere = random_tokens(noise, (4, 2, 2)).topk(4).indices.flatten().bincount(minlength=16)
    assert partly[:4].sum() == 4000
    assert (partly[:4] - 1000).abs().max() < 4 * math.sqrt(4000 * 0.25 * 0.75)
    assert (anywhere - 1000).abs().max() < 4 * math.sqrt(4000 * 0.25 * 0.75)


def test_a_selection_is_drawn_from_the_clips_noise():
    collate = SelectionCollator(["learned", "random", "uniform"], (2, 2, 2))
    assert (collate.noise_size, SelectionCollator(["motion"], (2, 2, 2)).noise_size) == (9, 0)
    clip = {"pixel_values_videos": torch.rand(4, 3, 8, 8)}
    seen = []
    for choice in (0.1, 0.5, 0.9):
        noise = torch.rand(2, 9)
        noise[0, -1] = choice
        state = torch.get_rng_state()
        batch = collate([{**clip, "noise": numbers} for numbers in noise])
        assert torch.equal(torch.get_rng_state(), state)  # nothing else is drawn
        assert "noise" not in batch
        seen.append(batch.get("importance_scores"))
    assert seen[0] is None
    torch.testing.assert_close(
        seen[2] % 1, noise[:, :-1], rtol=0, atol=1e-6
    )  # uniform frames: whole slots, and noise within
    with pytest.raises(ValueError, match="Got clips with 0 random numbers, expected 9 for selection"):
        collate([clip])
