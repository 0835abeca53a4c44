"""Pictures and films: the pixels that they show."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transformers_lvmae.models.video_io import decode_video
from transformers_lvmae.visualization.drawing import (
    save_curves,
    save_film,
    save_rows,
    spread_tokens,
    to_frames,
)


def test_frames_keep_their_axes_and_are_clamped():
    clip = torch.rand(2, 3, 4, 5) * 3 - 1
    frames = to_frames(clip)
    assert frames.shape == (2, 4, 5, 3)
    assert frames[1, 2, 3, 0] == clip[1, 0, 2, 3].clamp(0, 1)
    assert frames.min() == 0
    assert frames.max() == 1


def test_a_token_covers_its_pixels_also_where_sizes_do_not_divide():
    spread = spread_tokens(torch.arange(12.0), (2, 2, 3), (3, 4, 8))
    assert spread.shape == (3, 4, 8)
    for t, y, x in np.ndindex(3, 4, 8):
        assert spread[t, y, x] == (t // 2) * 6 + (y // 2) * 3 + x // 3


def test_rows_show_the_frames_that_were_asked_for(tmp_path, monkeypatch):
    shown = []
    imshow = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda axes, picture, **kwargs: shown.append(picture) or imshow(axes, picture))
    clips = {"$\\bad$ one": np.random.default_rng(0).random((6, 4, 5, 3)), "two": np.zeros((6, 2, 2, 3)) + 0.5}
    save_rows(tmp_path / "rows.png", clips, [0, 3, 5], title="$\\also$")
    assert len(shown) == 6
    for picture, (name, moment) in zip(shown, [(name, moment) for name in clips for moment in (0, 3, 5)]):
        assert np.array_equal(picture, clips[name][moment])


def test_a_film_has_its_panels_side_by_side(tmp_path):
    """Three clips of 16 x 32 pixels in two columns of 64 x 32 each below a line of 24; the fourth place is black."""
    panels = {name: np.full((4, 16, 32, 3), value) for name, value in (("a", 0.2), ("b", 0.5), ("c", 0.8))}
    save_film(tmp_path / "film.mp4", panels, columns=2, width=64)
    frames, metadata = decode_video(tmp_path / "film.mp4", lambda metadata: range(metadata.total_num_frames))
    assert frames.shape == (4, 3, 2 * (24 + 32), 2 * 64)
    assert metadata.fps == 12
    middles = [frames[:, :, y, x].float().mean().item() for y in (24 + 16, 2 * 24 + 48) for x in (32, 96)]
    assert middles == pytest.approx([51, 127.5, 204, 0], abs=4)


def test_curves_show_every_figure_that_was_logged_more_than_once(tmp_path, monkeypatch):
    drawn = {}
    savefig = Figure.savefig

    def watched(figure, path):
        for axis in figure.axes:
            if axis.lines:
                drawn[axis.get_title()] = axis.lines[0].get_xydata().tolist()
        savefig(figure, path)

    monkeypatch.setattr(Figure, "savefig", watched)
    log_history = [
        {"loss": 3.0, "epoch": 0.1, "step": 10},
        {"eval_psnr": 20.0, "eval_runtime": 1.0, "epoch": 0.1, "step": 10},
        {"loss": 2.0, "r1_penalty": 0.5, "epoch": 0.2, "step": 20},
        {"eval_psnr": 21.0, "eval_runtime": 1.0, "epoch": 0.2, "step": 20},
        {"train_loss": 2.5, "train_runtime": 9.0, "epoch": 0.2, "step": 20},
    ]
    save_curves(tmp_path / "losses.png", log_history)
    assert drawn == {"loss": [[10, 3], [20, 2]], "eval_psnr": [[10, 20], [20, 21]]}
    assert (tmp_path / "losses.png").stat().st_size > 1000
    save_curves(tmp_path / "empty.png", [])
    assert (tmp_path / "empty.png").exists()
