"""Train classifiers that look at a share of the tokens: how many tokens are needed, and which.

    python studies/chosen_tokens.py DATA runs/chosen_tokens --tokenizer runs/quickstart/tokenizer --steps 720 --seeds 5

A tiny classifier is trained from scratch for each way of choosing tokens, each share and each seed, with the same steps and the same order of
clips. Tokens are chosen in training and in the test in the same way. "all tokens" drops a share --tube_drop of the tubes in training and sees
all of them in the test. All clips are decoded once into memory, and scored once.

The table has the mean accuracy on the test split with its 95 % interval (Student's t over seeds), and the processor seconds of one training.
Differences from the learned choice at the same share are paired by seed. Nothing is chosen on the test split.

A training that is done is not done again; delete results.jsonl to start anew. Writes results.jsonl, table.md and accuracy.png.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch.utils.data import DataLoader

from transformers_lvmae import FSQMagViTModel, LVMAEConfig, LVMAEForVideoClassification
from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.data import ByteVideoClips, FrameSampling, load_video_dataset, processor_for, select_split
from transformers_lvmae.models.masking import gather_tubelets, split_tubelets
from transformers_lvmae.models.token_selection import LVMAETokenSelector
from transformers_lvmae.targets.pixels import PixelScale


SELECTIONS = ("learned", "motion", "everest", "random", "uniform")
SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "tubelet_size": 4,
    "hidden_size": 64,
    "num_hidden_layers": 2,
}
SIZES |= {"num_attention_heads": 4, "intermediate_size": 256, "recompute_activations": False}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_name", help="a folder of labelled videos, or a dataset id on the Hub")
    parser.add_argument("output_dir", type=Path, help="folder of results")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub id of the tokenizer, for learned scores")
    parser.add_argument("--num_frames", type=int, default=128, help="frames of a clip (default: %(default)s)")
    parser.add_argument("--image_mean", type=float, default=0.16, help="of all channels (default: %(default)s)")
    parser.add_argument("--image_std", type=float, default=0.2, help="of all channels (default: %(default)s)")
    parser.add_argument("--selections", nargs="+", choices=SELECTIONS, default=SELECTIONS, help="default: all")
    parser.add_argument(
        "--keep_ratios", nargs="+", type=float, default=[1, 0.25, 0.125, 0.0625], help="shares (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="trainings a row (default: %(default)s)")
    parser.add_argument("--first_seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=720, help="of 8 clips (default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="at its peak (default: %(default)s)")
    parser.add_argument("--tube_drop", type=float, default=0.75, help='of "all tokens" (default: %(default)s)')
    return parser.parse_args(argv)


class Clips:
    """A split in memory: uint8 clips, labels, and the scores of each selection."""

    def __init__(self, rows: Any, config: LVMAEConfig, selectors: dict[str, LVMAETokenSelector]):
        processor = processor_for(config)
        clips = ByteVideoClips(rows, processor, config.num_frames, sampling=FrameSampling(), label_column="label")
        pixels, labels = [], []
        scores: dict[str, list[torch.Tensor]] = {name: [] for name in selectors}
        for item in DataLoader(clips, batch_size=1):
            pixels.append(item["pixel_values_videos"])
            labels.append(item["labels"])
            for name, selector in selectors.items():
                scores[name].append(selector.scores(item["pixel_values_videos"]))
        self.pixels, self.labels = torch.cat(pixels), torch.cat(labels)
        self.scores = {name: torch.cat(values) for name, values in scores.items()}
        self.scale = PixelScale(processor)

    def batch(self, model: LVMAEForVideoClassification, rows: torch.Tensor, selection: str | None) -> dict[str, Any]:
        """Return the model's inputs: the tubelets of the chosen tokens, or whole clips with selection None."""
        clips = self.pixels[rows]
        if selection is None:
            return {"pixel_values_videos": self.scale.normalize(clips)}
        selector: Any = model.lvmae.token_selector
        scores = self.scores[selection][rows] if selection in self.scores else None
        kept = selector(clips, scores)
        count = int(kept[0].sum())
        positions = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        tubelets = split_tubelets(clips, model.config.tubelet_size, model.config.patch_size)
        tubelets = self.scale.normalize(gather_tubelets(tubelets, positions))
        return {"visible_tubelets": tubelets, "bool_masked_pos": ~kept, "num_visible": count}


def train(config: LVMAEConfig, clips: Clips, selection: str | None, args: argparse.Namespace, seed: int) -> Any:
    """Train one classifier from scratch; return it and the processor seconds."""
    torch.manual_seed(seed)
    model = LVMAEForVideoClassification(config).train()
    order = torch.Generator().manual_seed(seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, args.learning_rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    warmup = max(1, args.steps // 10)
    rows = torch.empty(0, dtype=torch.long)
    started = time.process_time()
    for step in range(args.steps):
        share = (
            (step + 1) / warmup
            if step < warmup
            else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (args.steps - warmup)))
        )
        optimizer.param_groups[0]["lr"] = args.learning_rate * share
        if len(rows) < 8:
            rows = torch.randperm(len(clips.labels), generator=order)
        chosen, rows = rows[:8], rows[8:]
        loss = model(**clips.batch(model, chosen, selection), labels=clips.labels[chosen]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), time.process_time() - started


@torch.no_grad()
def accuracy(model: LVMAEForVideoClassification, clips: Clips, selection: str | None) -> float:
    correct = 0
    for rows in torch.arange(len(clips.labels)).split(8):
        logits = model(**clips.batch(model, rows, selection)).logits
        correct += int((logits.argmax(1) == clips.labels[rows]).sum())
    return correct / len(clips.labels)


def interval(values: np.ndarray) -> float:
    """Half the 95 % interval of a mean, Student's t."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| tokens | chosen by | test accuracy | learned minus this | CPU s of training | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[float, str], dict[int, dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["keep_ratio"], result["selection"]), {})[result["seed"]] = result
    for (ratio, selection), found in sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1] != "learned")):
        values = np.array([result["accuracy"] for result in found.values()])
        seconds = np.mean([result["cpu_seconds"] for result in found.values()])
        learned = groups.get((ratio, "learned"), {})
        both = [seed for seed in found if seed in learned and selection != "learned"]
        difference = ""
        if both:
            paired = np.array([learned[seed]["accuracy"] - found[seed]["accuracy"] for seed in both])
            difference = f"{paired.mean():+.3f} ± {interval(paired):.3f}"
        mean = f"{values.mean():.3f} ± {interval(values):.3f}"
        lines.append(f"| {ratio:g} | {selection} | {mean} | {difference} | {seconds:.0f} | {len(values)} |")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], chance: float, path: Path) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    markers = dict(zip(SELECTIONS, "osD^v"))
    colors = dict(
        zip(SELECTIONS, ("#0072b2", "#d55e00", "#009e73", "#7f7f7f", "#cc79a7"))
    )  # told apart without red and green
    for selection in SELECTIONS:
        ratios = sorted({result["keep_ratio"] for result in results if result["selection"] == selection})
        groups = [
            np.array([r["accuracy"] for r in results if r["selection"] == selection and r["keep_ratio"] == ratio])
            for ratio in ratios
        ]
        means, errors = [values.mean() for values in groups], [interval(values) for values in groups]
        style: dict[str, Any] = {"marker": markers[selection], "color": colors[selection], "capsize": 3}
        if ratios:
            axes.errorbar(ratios, means, errors, label=selection, **style)
    whole = np.array([r["accuracy"] for r in results if r["selection"] == "all tokens"])
    if len(whole):
        axes.axhline(whole.mean(), color="black", label="all tokens")
        axes.axhspan(whole.mean() - interval(whole), whole.mean() + interval(whole), color="black", alpha=0.1)
    axes.axhline(chance, color="black", linestyle=":", label="chance")
    axes.set_xscale("log", base=2)
    ticks = sorted({result["keep_ratio"] for result in results if result["keep_ratio"] < 1})
    axes.set_xticks(ticks, [f"1/{round(1 / ratio)}" for ratio in ticks])
    axes.set_xlabel("share of the tokens that the classifier looks at")
    axes.set_ylabel("test accuracy")
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    args = parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    splits = load_video_dataset(args.dataset_name, label_column="label")
    train_rows, test_rows = (select_split(splits, name, None, ["label"]) for name in ("train", "test"))
    num_labels = len(train_rows.features["label"].names)
    sizes = {**SIZES, "num_labels": num_labels, "num_frames": args.num_frames}
    sizes |= {"image_mean": 3 * [args.image_mean], "image_std": 3 * [args.image_std]}
    config = LVMAEConfig(**sizes, tube_drop_ratio=0.0)
    tokenizer = FSQMagViTModel.from_pretrained(args.tokenizer)
    selectors: dict[str, Any] = {}
    for name in set(args.selections) - {"random", "uniform"}:
        fields = {**config.to_dict(), "token_keep_ratio": 0.5, "token_selection": name}
        scoring = LVMAEForVideoClassification(LVMAEConfig(**fields)).eval()
        if name == "learned":
            scoring.set_token_scorer(tokenizer)
        selectors[name] = scoring.lvmae.token_selector
    path = args.output_dir / "results.jsonl"
    results = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(result["selection"], result["keep_ratio"], result["seed"]) for result in results}
    sets = {name: Clips(rows, config, selectors) for name, rows in (("train", train_rows), ("test", test_rows))}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for ratio in sorted(args.keep_ratios):
            for name in ["all tokens"] if ratio == 1 else args.selections:
                if (name, ratio, seed) in done:
                    continue
                selection = None if ratio == 1 else name
                # Scores are computed beforehand, so no model needs the scorer.
                chosen = {
                    "token_keep_ratio": ratio,
                    "token_selection": name if name in ("random", "uniform") else "motion",
                }
                changed = {"tube_drop_ratio": args.tube_drop} if selection is None else chosen
                row_config = LVMAEConfig(**{**config.to_dict(), **changed})
                model, seconds = train(row_config, sets["train"], selection, args, seed)
                result = {"selection": name, "keep_ratio": ratio, "seed": seed, "steps": args.steps}
                result |= {"accuracy": accuracy(model, sets["test"], selection), "cpu_seconds": round(seconds, 1)}
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
                results.append(result)
                print(result, flush=True)
    text = table(results)
    (args.output_dir / "table.md").write_text(text + "\n", encoding="utf-8")
    plot(results, 1 / num_labels, args.output_dir / "accuracy.png")
    print(text)


if __name__ == "__main__":
    run(main)
