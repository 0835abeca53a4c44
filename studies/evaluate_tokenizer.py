"""Compare the learned choice of tokens with other choices, each with its own autoencoder.

    python studies/evaluate_tokenizer.py runs/tokenizer DATA runs/selection --fork_steps 500 --seeds 3

An autoencoder is best at the choice of tokens that it was trained with. So for each seed and each choice, a copy of the tokenizer (a fork)
is trained for `fork_steps` with this choice and evaluated with it. Test windows are reconstructed from the first slot and a budget of other
tokens, as in training; budgets are shares of the window's tokens.

PSNR in dB is a mean over windows, of all pixels and of moving pixels. Moving pixels differ from the window's first frame by more than 0.1
of the range in some channel. Copying that frame is the lower bound. If flicker or noise changes every pixel, --moving_in names a dataset of
the same clips without it, which determines the moving pixels. Intervals are 95 % intervals of Student's t over seeds; differences are
paired by seed.

An evaluated fork is not trained again, and an interrupted one continues; delete its folder to repeat it. With --fork_steps 0 the tokenizer
itself is evaluated with every choice. Results are written to results.json, table.md and psnr.png.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch.utils.data import DataLoader
from transformers import set_seed

from transformers_lvmae import FSQMagViTModel, FSQMagViTTrainer, FSQMagViTTrainingArguments
from transformers_lvmae.data import (
    ClipAugmentation,
    FrameSampling,
    SelectionCollator,
    VideoClips,
    load_video_dataset,
    processor_for,
    select_split,
)
from transformers_lvmae.models.masking import first_slot_and_topk_mask
from transformers_lvmae.targets.token_scores import SCORES
from transformers_lvmae.training.base import train_and_save
from transformers_lvmae.training.tokenizer import peak_signal_to_noise_ratio


SELECTIONS = tuple(SCORES)
BUDGETS = (0.05, 0.1, 0.15, 0.25, 0.5, 1.0)
MOVING_THRESHOLD = 0.1

Results = dict[str, dict[str, list[float]]]  # {"all" | "moving": {"copy" | budget: one mean per seed}}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", help="folder or Hub id of the tokenizer to fork")
    parser.add_argument("dataset_name", help="a folder of videos, or a dataset id on the Hub")
    parser.add_argument("output_dir", type=Path, help="folder of forks and results")
    parser.add_argument("--fork_steps", type=int, default=500, help="training steps per fork (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="forks per choice (default: %(default)s)")
    parser.add_argument("--selections", nargs="+", choices=SELECTIONS, default=SELECTIONS, help="default: all")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="windows per step (default: %(default)s)")
    parser.add_argument(
        "--max_samples", type=int, default=None, help="evaluate on the first so many videos (default: all)"
    )
    parser.add_argument(
        "--moving_in",
        help="dataset of the same clips without flicker or noise, which determines the moving pixels (default: the data)",
    )
    parser.add_argument(
        "--min_crop_scale",
        type=float,
        default=1.0,
        help="smallest share of a frame's area that a training crop keeps, 0 to 1 (default: %(default)s)",
    )
    return parser.parse_args(argv)


def train_fork(args: argparse.Namespace, selection: str, seed: int, folder: Path) -> FSQMagViTModel:
    """Train a copy of the tokenizer with one choice of tokens, saved to `folder`."""
    set_seed(seed)
    model = FSQMagViTModel.from_pretrained(args.tokenizer)
    if args.fork_steps == 0:
        return model
    rows = load_video_dataset(args.dataset_name)
    processor = processor_for(model.config, do_normalize=False)
    window = model.config.window_size
    arguments = FSQMagViTTrainingArguments(
        output_dir=str(folder),
        max_steps=args.fork_steps,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=args.batch_size,
        adam_beta1=0.9,
        seed=seed,
        save_steps=200,
        save_total_limit=1,
        report_to="none",
    )
    clips = VideoClips(
        select_split(rows, "train"),
        processor,
        window,
        training=True,
        sampling=FrameSampling(frame_stride=1),
        augmentation=ClipAugmentation(args.min_crop_scale),
        seed=seed,
    )
    collator = SelectionCollator([selection], model.config.window_grid_size)
    clips.noise_size = collator.noise_size
    trainer = FSQMagViTTrainer(
        model, arguments, train_dataset=clips, processing_class=processor, data_collator=collator
    )
    train_and_save(trainer, dataset=args.dataset_name)
    return model


def moving_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Compare clips (B, T, C, H, W) with their first frames: bool of the same shape, True = different."""
    return ((pixels - pixels[:, :1]).abs().amax(dim=2, keepdim=True) > MOVING_THRESHOLD).expand_as(pixels)


@torch.no_grad()
def judge(
    model: FSQMagViTModel, selection: str, clips: VideoClips, batch_size: int, twins: VideoClips | None = None
) -> dict[str, dict[str, float]]:
    """Return the mean PSNR of all and of moving pixels, for copying the first frame and for each budget.

    Args:
        twins: the clips that determine the moving pixels; by default `clips`.
    """
    model.eval()
    grid_size = model.config.window_grid_size
    collate = SelectionCollator([selection], grid_size)
    clips.noise_size = collate.noise_size
    figures: dict[str, dict[str, list[float]]] = {"all": {}, "moving": {}}
    loaders = DataLoader(clips, batch_size=batch_size, collate_fn=collate), DataLoader(twins or clips, batch_size)
    for batch, twin in zip(*loaders, strict=True):
        pixels = batch["pixel_values_videos"].to(model.device)
        _, codes, _, importance = model.encode(pixels).to_tuple()
        scores = batch.get("importance_scores", importance).to(model.device)
        moving = moving_pixels(twin["pixel_values_videos"].to(model.device))
        predictions = {"copy": pixels[:, :1].expand_as(pixels)}
        for budget in BUDGETS:
            kept = first_slot_and_topk_mask(scores, grid_size[1] * grid_size[2], budget)
            predictions[f"{budget:.0%}"] = model.decode(codes * kept.unsqueeze(-1), grid_size)
        for name, prediction in predictions.items():
            figures["all"].setdefault(name, []).extend(peak_signal_to_noise_ratio(prediction, pixels).tolist())
            still_right = torch.where(moving, prediction, pixels)
            share = (
                -10 * moving.flatten(1).float().mean(dim=1).log10()
            )  # infinite if nothing moves; such windows are left out
            psnr = (peak_signal_to_noise_ratio(still_right, pixels) - share).tolist()
            figures["moving"].setdefault(name, []).extend(psnr)
    return {
        region: {
            name: float(np.mean([value for value in values if np.isfinite(value)])) for name, values in rows.items()
        }
        for region, rows in figures.items()
    }


def run_fork(args: argparse.Namespace, selection: str, seed: int) -> dict[str, dict[str, float]]:
    """Train and evaluate one fork, or read the results of an earlier run."""
    folder = args.output_dir / f"seed_{seed}" / selection
    record = folder / "psnr.json"
    if not record.is_file():
        model = train_fork(args, selection, seed, folder)
        processor = processor_for(model.config, do_normalize=False)
        clips, twins = (
            VideoClips(
                select_split(load_video_dataset(name), "test", args.max_samples),
                processor,
                model.config.window_size,
                sampling=FrameSampling(frame_stride=1),
            )
            for name in (args.dataset_name, args.moving_in or args.dataset_name)
        )
        set_seed(seed)
        figures = judge(model, selection, clips, args.batch_size, twins)
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(figures, indent=2))
    return json.loads(record.read_text())


def gather(args: argparse.Namespace) -> dict[str, Results]:
    """Return the figures of all forks, {choice: {region: {budget: [seed 0, seed 1, ...]}}}. All choices of a seed run before the next seed."""
    results: dict[str, Results] = {}
    for seed in range(args.seeds):
        for selection in args.selections:
            for region, figures in run_fork(args, selection, seed).items():
                for name, value in figures.items():
                    by_name = results.setdefault(selection, {}).setdefault(region, {})
                    by_name.setdefault(name, []).append(value)
    return results


def interval(values: list[float]) -> float:
    """Return half the width of the 95 % interval of the mean (Student's t); 0 for one value."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def psnr_table(results: dict[str, Results], region: str) -> str:
    budgets = [f"{budget:.0%}" for budget in BUDGETS]
    copy = np.mean(next(iter(results.values()))[region]["copy"])
    lines = [f"| {region} pixels, dB | {' | '.join(budgets)} |", "| --- " * (len(budgets) + 1) + "|"]
    for selection, figures in results.items():
        cells = [f"{np.mean(figures[region][name]):.2f} ± {interval(figures[region][name]):.2f}" for name in budgets]
        lines.append(f"| {selection} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"| first frame copied | {' | '.join([f'{copy:.2f}'] * len(budgets))} |"])


def difference_table(results: dict[str, Results], region: str) -> str:
    """Return Markdown with the advantage of the learned choice over each other one, paired by seed."""
    budgets = [f"{budget:.0%}" for budget in BUDGETS]
    lines = [f"| learned minus ..., {region} pixels, dB | {' | '.join(budgets)} |", "| --- " * (len(budgets) + 1) + "|"]
    for selection, figures in results.items():
        if selection != "learned":
            pairs = [np.subtract(results["learned"][region][name], figures[region][name]) for name in budgets]
            cells = [f"{difference.mean():+.2f} ± {interval(difference.tolist()):.2f}" for difference in pairs]
            lines.append(f"| {selection} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: dict[str, Results], path: Path) -> None:
    """Plot PSNR over the budget, one line with intervals per choice."""
    figure = Figure(figsize=(10, 4), dpi=110)
    for axis, region in zip(figure.subplots(1, 2), ("all", "moving")):
        for selection, figures in results.items():
            values = [figures[region][f"{budget:.0%}"] for budget in BUDGETS]
            style = {"linewidth": 2.5, "color": "black"} if selection == "learned" else {"linewidth": 1.2}
            means, errors = [np.mean(value) for value in values], [interval(value) for value in values]
            axis.errorbar([100 * budget for budget in BUDGETS], means, errors, label=selection, capsize=2, **style)
        copy = np.mean(next(iter(results.values()))[region]["copy"])
        axis.axhline(copy, color="grey", linestyle=":", label="first frame copied")
        axis.set(
            xlabel="tokens kept besides the first slot, % of the window", ylabel="PSNR, dB", title=f"{region} pixels"
        )
        axis.set(xscale="log", xticks=[100 * budget for budget in BUDGETS])
        axis.set_xticklabels([f"{100 * budget:.0f}" for budget in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    results = gather(args)
    tables = [psnr_table(results, region) for region in ("moving", "all")]
    if "learned" in results:
        tables += [difference_table(results, region) for region in ("moving", "all")]
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=2))
    (args.output_dir / "table.md").write_text("\n\n".join(tables) + "\n")
    plot(results, args.output_dir / "psnr.png")
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
