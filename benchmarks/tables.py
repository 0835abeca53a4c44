"""Markdown tables and the figure of the decoder budgets, made from the lines of results.jsonl."""

import json
from pathlib import Path
from statistics import median
from typing import Any


# Title, key in a line of results.jsonl, unit, digits.
COLUMNS = [
    ("CPU s", "cpu", 1, 2),
    ("wall s", "wall", 1, 1),
    ("peak MiB", "rss", 2**20, 0),
    ("computed peak MiB", "computed", 2**20, 0),
    ("saved MiB", "saved", 2**20, 0),
    ("GFLOP", "flops", 1e9, 0),
    ("build CPU s", "build_cpu", 1, 1),
    ("MB sent", "sent", 1e6, 2),
    ("ms a clip", "ms", 1, 1),
    ("clips/s", "clips_per_second", 1, 1),
    ("peak GiB", "device_peak", 2**30, 2),
]
FIGURES = [*(column[1] for column in COLUMNS), "gemm_rate"]


def write_tables(path: Path, output: Path) -> str:
    """Write OUTPUT/tables.md, and OUTPUT/decoder_budgets.png if there are any, from the results in `path`; return the tables."""
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    tables = []
    for group, rows in medians(runs).items():
        timed = [run["name"] for run in runs if run["group"] == group and "cpu" in run]
        tables.append(table(group, rows, {name: timed.count(name) for name in rows}))
        if group.startswith("Decoder budget"):
            plot_budgets(rows, output / "decoder_budgets.png")
    text = "\n\n".join(tables) + "\n"
    (output / "tables.md").write_text(text)
    return text


def medians(runs: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """group -> name -> figure -> median over the runs that have it."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        grouped.setdefault(run["group"], {}).setdefault(run["name"], []).append(run)
    return {
        group: {
            name: {
                key: median(run[key] for run in same if key in run)
                for key in FIGURES
                if any(key in run for run in same)
            }
            for name, same in names.items()
        }
        for group, names in grouped.items()
    }


def table(group: str, rows: dict[str, dict[str, float]], repeats: dict[str, int]) -> str:
    """One group in Markdown. In brackets: the ratio to its first row."""
    columns = [column for column in COLUMNS if any(column[1] in row for row in rows.values())]
    first = next(iter(rows.values()))
    bounded = any({"flops", "cpu"} <= row.keys() for row in rows.values())
    head = ["", *(column[0] for column in columns), *(["of GEMM bound"] if bounded else []), "runs"]
    lines = [f"### {group}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, row in rows.items():
        cells = [figure_with_ratio(row, first, *column[1:]) for column in columns]
        if bounded:
            known = {"flops", "cpu"} <= row.keys()
            cells.append(f"{row['flops'] / row['cpu'] / row['gemm_rate']:.0%}" if known else "")
        lines.append(f"| {' | '.join([name, *cells, str(repeats[name])])} |")
    return "\n".join(lines)


def figure_with_ratio(row: dict[str, float], first: dict[str, float], key: str, unit: float, digits: int) -> str:
    if key not in row:
        return ""
    ratio = f" ({row[key] / first[key]:.2f})" if row is not first and first.get(key) else ""
    return f"{row[key] / unit:,.{digits}f}{ratio}"


def plot_budgets(rows: dict[str, dict[str, float]], path: Path) -> None:
    """What the decoder's budget costs, as in the paper's Figure 1, right."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    panels = [("Peak memory (MiB)", "rss", 2**20), ("GFLOP a step", "flops", 1e9), ("CPU seconds a step", "cpu", 1)]
    for axis, (title, key, unit) in zip(axes, panels):
        names = ["all" if name.startswith("all") else name.split(" of")[0] for name in rows]
        axis.bar(names, [row[key] / unit for row in rows.values()], color=["#9aa5b1"] + ["#2f6f9f"] * (len(rows) - 1))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("tokens decoded", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
