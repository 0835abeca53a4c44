"""Evaluate a frozen encoder with a small classifier on its features.

    python scripts/extract_features.py runs/pretrain DATA features
    python scripts/probe.py linear features runs/linear_probe

    python scripts/extract_features.py runs/pretrain DATA token_features --tokens
    python scripts/probe.py attentive token_features runs/attentive_probe

linear is logistic regression on clip features. attentive is V-JEPA's probe on tokens; its sweep of 20 learning rates and weight decays is
trained at once. The settings with the best accuracy on --validation_split are chosen, by default on a fifth of the training videos drawn
with the seed. Each seed uses the test split once, with the chosen settings. results.json holds every seed's settings and accuracy, their
mean and deviation. The attentive probe with the best validation accuracy is saved with its encoder for pipeline("video-classification").
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoVideoProcessor

from transformers_lvmae import LVMAEConfig, LVMAEForVideoClassification
from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.evaluation.features import TokenFeatures, load_features, split_settings
from transformers_lvmae.evaluation.probe import ProbeData, attentive_probe, class_ids, linear_probe, split_by_video
from transformers_lvmae.files import write_aside


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandLine(description=__doc__)
    parser.add_argument("probe", choices=("linear", "attentive"), help="kind of classifier")
    parser.add_argument("features", type=Path, help="output folder of extract_features.py; attentive needs --tokens")
    parser.add_argument("output_dir", type=Path, help="folder of the results")
    parser.add_argument("--label_column", default="label", help="column with the classes (default: %(default)s)")
    parser.add_argument("--train_split", default="train", help="split to train on (default: %(default)s)")
    parser.add_argument(
        "--validation_split", help="split to choose settings on (default: a fifth of the training videos)"
    )
    parser.add_argument("--test_split", default="test", help="split to test on (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, within="[1, inf)", default=3, help="number of repetitions (default: %(default)s)"
    )
    parser.add_argument(
        "--num_train_epochs", type=float, within="(0, inf)", default=20, help="attentive: epochs (default: %(default)s)"
    )
    parser.add_argument(
        "--batch_size", type=int, within="[1, inf)", default=64, help="attentive: clips per step (default: %(default)s)"
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        within="[0, inf)",
        default=0,
        help="attentive: processes that read features (default: %(default)s)",
    )
    parser.add_argument("--bf16", action="store_true", help="attentive: train with bfloat16 autocast")
    return parser.parse_args(argv)


def load_data(args: argparse.Namespace) -> tuple[dict[str, ProbeData], list[str]]:
    """Return features and labels of each split, and the names of the classes."""
    splits = [name for name in (args.train_split, args.validation_split, args.test_split) if name]
    clips = {split: load_features(args.features, split) for split in splits}
    ids, names = class_ids(clips, args.label_column)
    data = {}
    for split in splits:
        features: Any = None
        if args.probe == "attentive":
            features = TokenFeatures(args.features, split, ids[split])
        elif "features" in clips[split].column_names:
            features = np.asarray(clips[split]["features"][:], dtype=np.float32)
        else:
            raise ValueError(
                f"Got tokens in {args.features}, expected clip features for a linear probe: extract without --tokens."
            )
        data[split] = ProbeData(features, ids[split], np.asarray(clips[split]["row"][:]))
    return data, names


def run_seed(
    args: argparse.Namespace, data: dict[str, ProbeData], config: LVMAEConfig, seed: int
) -> tuple[dict[str, float], Any]:
    """Return one seed's settings and accuracies, and its probe if it is attentive."""
    train = data[args.train_split]
    if args.validation_split:
        validation = data[args.validation_split]
    else:
        train, validation = split_by_video(train, 0.2, seed)
    probe = None
    if args.probe == "linear":
        found, scores = linear_probe(train, validation, len(config.id2label or {}))
    else:
        options = {"dataloader_num_workers": args.num_workers, "bf16": args.bf16}
        found, scores, probe = attentive_probe(
            train, validation, config, seed, args.num_train_epochs, args.batch_size, **options
        )
    test = data[args.test_split]
    test_scores = scores(test)
    accuracies = {"test_accuracy": test.accuracy(test_scores), "test_top5_accuracy": test.accuracy(test_scores, 5)}
    return {"seed": seed, **found, **accuracies}, probe


def save_classifier(probe: Any, encoder: str, config: LVMAEConfig, folder: Path) -> None:
    """Save the encoder with the probe as its head, and the processor."""
    model = LVMAEForVideoClassification.from_pretrained(encoder, config=config)
    model.load_state_dict({**model.state_dict(), **probe.to(model.device).state_dict()})
    model.save_pretrained(folder)
    AutoVideoProcessor.from_pretrained(encoder).save_pretrained(folder)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    data, names = load_data(args)
    encoder = split_settings(args.features, args.train_split)["model"]
    labels: dict[str, Any] = {
        "label_sets": None,  # a fine-tuned encoder may bring its own
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    config = LVMAEConfig.from_pretrained(encoder, pooling="class_attention", **labels)
    seeds = []
    best: tuple[float, Any] = (-1.0, None)
    for seed in range(args.seeds):
        found, probe = run_seed(args, data, config, seed)
        print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
        seeds.append(found)
        best = max(best, (found["validation_accuracy"], probe), key=lambda item: item[0])
    test = data[args.test_split]
    videos, first = np.unique(test.videos, return_index=True)
    accuracies = [found["test_accuracy"] for found in seeds]
    results = {
        "probe": args.probe,
        "model": encoder,
        "features": str(args.features),
        "test_videos": len(videos),
        "test_videos_total": split_settings(args.features, args.test_split)["num_rows"],
        "test_accuracy_mean": float(np.mean(accuracies)),
        "test_accuracy_std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "largest_class": float(np.bincount(test.labels[first]).max() / len(videos)),
        "seeds": seeds,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_aside(args.output_dir / "results.json", json.dumps(results, indent=2) + "\n")
    if best[1] is not None:
        save_classifier(best[1], encoder, config, args.output_dir)
    account = f"on {len(videos):,} of {results['test_videos_total']:,} videos"
    print(
        f"test accuracy {results['test_accuracy_mean']:.4f} {account} (largest class: {results['largest_class']:.4f})"
    )


if __name__ == "__main__":
    run(main)
