"""Draw clips, masks, scores and curves, as pictures and films."""

import os
from collections import Counter
from typing import IO

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ..models.video_io import write_video


Frames = np.ndarray  # (T, H, W, 3), float in [0, 1]


def to_frames(clip: torch.Tensor) -> Frames:
    """Return a clip (T, C, H, W) as frames. Values outside [0, 1] are clamped."""
    return clip.detach().float().clamp(0, 1).permute(0, 2, 3, 1).numpy()


def spread_tokens(tokens: torch.Tensor, grid_size: tuple[int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Give every pixel the value of its token: (N,) -> (T, H, W)."""
    values = tokens.detach().cpu().float().numpy().reshape(grid_size)
    for axis in range(3):
        values = values.repeat(-(-shape[axis] // grid_size[axis]), axis=axis)
    return values[: shape[0], : shape[1], : shape[2]]


def show_kept(frames: Frames, kept: torch.Tensor, grid_size: tuple[int, int, int]) -> Frames:
    """Darken the tokens that are not `kept` (N,)."""
    brightness = 0.15 + 0.85 * spread_tokens(kept, grid_size, frames.shape)
    return frames * brightness[..., None]


def show_scores(frames: Frames, scores: torch.Tensor, grid_size: tuple[int, int, int]) -> Frames:
    """Draw scores (N,) as a heat map over gray frames, from the clip's lowest (dark) to its highest (yellow)."""
    scores = scores.detach().float()
    scaled = (scores - scores.min()) / (scores.max() - scores.min() + 1e-12)
    heat = matplotlib.colormaps["inferno"](spread_tokens(scaled, grid_size, frames.shape))[..., :3]
    return 0.25 * frames.mean(axis=-1, keepdims=True) + 0.75 * heat


def save_rows(
    path: str | os.PathLike | IO[bytes], rows: dict[str, Frames], moments: list[int], title: str = ""
) -> None:
    """Write a PNG with one labeled row for each clip in `rows` (of any size) and one column for each frame number.

    A "$" in a label is a dollar, and begins no formula.
    """
    height = max(frames.shape[1] / frames.shape[2] for frames in rows.values())
    figure = Figure(figsize=(1.2 * len(moments) + 2.2, 1.25 * height * len(rows) + 0.5), dpi=110)
    axes = figure.subplots(len(rows), len(moments), squeeze=False)
    for row, (label, frames) in zip(axes, rows.items()):
        for axis, moment in zip(row, moments):
            axis.imshow(frames[moment].clip(0, 1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8).set_parse_math(False)
    for axis, moment in zip(axes[0], moments):
        axis.set_title(f"frame {moment}", fontsize=7)
    figure.suptitle(title, fontsize=9).set_parse_math(False)
    figure.tight_layout(pad=0.4, rect=(0, 0, 1, 1 - 0.1 / figure.get_figheight()))
    figure.savefig(path)


def save_curves(path: str | os.PathLike, log_history: list[dict[str, float]]) -> None:
    """Write a PNG of a run's logs (`trainer.state.log_history`), with a panel for each metric that was logged more than once."""
    skipped = ("epoch", "step", "runtime", "per_second", "flos")
    names = [name for entry in log_history for name in entry if not name.endswith(skipped)]
    counts = Counter(names)
    shown = [name for name in counts if counts[name] > 1]
    columns = max(1, min(4, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(3.2 * columns, 2.2 * rows), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(axes, shown):
        points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
        axis.plot(*zip(*points), linewidth=1)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=6)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    figure.tight_layout(pad=0.6)
    figure.savefig(path)


def save_film(
    path: str | os.PathLike, panels: dict[str, Frames], columns: int, fps: int = 12, width: int = 224
) -> None:
    """Write a film of labeled clips of the same length, `columns` side by side, each enlarged to `width` pixels."""
    tiles = [_labeled(frames, label, width) for label, frames in panels.items()]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=2) for start in range(0, len(tiles), columns)]
    write_video(path, np.concatenate(rows, axis=1), fps)


def _labeled(frames: Frames, label: str, width: int) -> np.ndarray:
    """Return uint8 frames (T, H, width, 3), H even, below a line with their label."""
    height = round(width * frames.shape[1] / frames.shape[2] / 2) * 2
    banner = Image.new("RGB", (width, 24), "white")
    ImageDraw.Draw(banner).text((6, 5), label.replace("\n", " "), fill="black", font=ImageFont.load_default(12))
    pixels = (frames.clip(0, 1) * 255).round().astype(np.uint8)
    enlarged = [Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST) for frame in pixels]
    return np.stack([np.concatenate([np.asarray(banner), np.asarray(frame)]) for frame in enlarged])
