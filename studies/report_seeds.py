"""Compare several fine-tuning methods over seeds: a table of test accuracies with mean and deviation, and a plot of training losses.

    python studies/report_seeds.py runs/pretraining_helps pretrained scratch lora

The script reads test_results.json, memory_results.json and trainer_state.json in RUN/NAME_SEED, the output folders of finetune.py. It
writes RUN/table.md and RUN/losses.png, with a line for each seed.
"""

import json
import re
from pathlib import Path

import numpy as np

from transformers_lvmae.command_line import CommandLine, run


def results_of(run: Path, name: str) -> dict[int, tuple[float, float]]:
    """Return {seed: (test accuracy, share of the parameters that was trained)}.

    Raises:
        FileNotFoundError: no run of that name has test results.
    """
    found = {}
    for path in run.glob(f"{name}_*/test_results.json"):
        seed = re.fullmatch(rf"{re.escape(name)}_(\d+)", path.parent.name)
        if seed:
            memory = json.loads((path.parent / "memory_results.json").read_text())
            found[int(seed[1])] = json.loads(path.read_text())["test_accuracy"], memory["trainable_share"]
    if not found:
        raise FileNotFoundError(
            f"Got no {run}/{name}_*/test_results.json, expected at least one: run finetune.py with --test_split and --output_dir "
            f"{run}/{name}_0 first."
        )
    return dict(sorted(found.items()))


def table(results: dict[str, dict[int, tuple[float, float]]]) -> str:
    """Return Markdown: the accuracy of each seed, their mean and sample standard deviation."""
    seeds = sorted({seed for runs in results.values() for seed in runs})
    head = ["", "trained", *(f"seed {seed}" for seed in seeds), "mean", "deviation"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, runs in results.items():
        accuracies = np.array([accuracy for accuracy, _ in runs.values()])
        share = np.mean([share for _, share in runs.values()])
        deviation = f"{accuracies.std(ddof=1):.3f}" if len(accuracies) > 1 else ""
        cells = [f"{runs[seed][0]:.3f}" if seed in runs else "" for seed in seeds]
        lines.append(f"| {' | '.join([name, f'{share:.1%}', *cells, f'{accuracies.mean():.3f}', deviation])} |")
    return "\n".join(lines) + "\n"


def plot_losses(run: Path, results: dict[str, dict[int, tuple[float, float]]], path: Path) -> None:
    """Plot the training loss over epochs: a line for each seed, a colour for each method."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for number, (name, runs) in enumerate(results.items()):
        for seed in runs:
            history = json.loads((run / f"{name}_{seed}" / "trainer_state.json").read_text())["log_history"]
            logs = [entry for entry in history if "loss" in entry]
            label = name if seed == min(runs) else None
            axis.plot(
                [entry["epoch"] for entry in logs], [entry["loss"] for entry in logs], color=f"C{number}", label=label
            )
    axis.set_xlabel("epoch")
    axis.set_ylabel("training loss")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = CommandLine(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the runs")
    parser.add_argument("names", nargs="+", help="methods: names of the folders without _SEED")
    args = parser.parse_args()
    results = {name: results_of(args.run, name) for name in args.names}
    text = table(results)
    plot_losses(args.run, results, args.run / "losses.png")
    (args.run / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    run(main)
