"""Measure time, memory and FLOPs of LVMAE beside what transformers has, in one interleaved run.

    python benchmarks/run.py --cases step --sizes base --frames 128 --repeats 3
    python benchmarks/run.py --cases budget finetune tokenizer tokenizers input path cache

Every case runs in a fresh process on one thread. One run of each case measures its memory, then --repeats rounds measure the time, case
after case: whatever else the machine does meets all cases alike. Compare CPU seconds; wall clock depends on the machine's load. One
JSON line a run goes to OUTPUT/results.jsonl, medians with ratios to the first case of each group to OUTPUT/tables.md, and the decoder
budgets to OUTPUT/decoder_budgets.png.

The comparison is fair: float32, batch 1, one thread, inputs built before the clock starts. LVMAE is given its targets (as from a
cache); the others make theirs, pixels, in the step. Weights are random, because cost does not depend on them. FLOPs and saved bytes of
LVMAE's pre-training and fine-tuning steps are counted without running them (transformers_lvmae.cost), those of the others in a
second step after the one whose memory is measured; --no_count skips that step. Other projects' tokenizers run where their
packages (diffusers, magvit2-pytorch) are installed; otherwise a message says that they are left out.

The files: cases.py lists the cases, model_work.py and data_work.py build their work, measuring.py runs one, tables.py reports.
"""

import argparse
import json
import sys
from pathlib import Path

from cases import GROUPS, Case
from measuring import run_in_fresh_process
from model_work import ENCODERS
from tables import write_tables

from transformers_lvmae.command_line import CommandLine, run


def run_all(cases: list[Case], repeats: int, count: bool, path: Path) -> None:
    """Append one line per run to `path`: first the memory of every case, then its time in each of `repeats` rounds."""
    records = {}
    for case in cases:
        if case.files is not None:
            case.files()
        records[case] = {**case.record(), **(case.figures() if case.figures is not None else {})}
    with path.open("a") as file:
        file.writelines(json.dumps(records[case]) + "\n" for case in cases if not case.runs)
    cases = [case for case in cases if case.runs]
    for repeat in range(repeats + 1):
        memory = repeat == 0
        for number, case in enumerate(cases):
            result = run_in_fresh_process(case, memory, count and case.figures is None)
            with path.open("a") as file:
                file.write(json.dumps({**records[case], **result}) + "\n")
            seen = f"[{repeat}/{repeats}, {number + 1}/{len(cases)}] {case.group}: {case.name}"
            figure = f"{result['rss'] / 2**20:.0f} MiB" if memory else f"{result['cpu']:.2f} CPU s"
            print(f"{seen}: {figure}", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="groups of cases (default: all)"
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=list(ENCODERS), default=["small", "base"], help="ViTs of the pre-training step"
    )
    parser.add_argument(
        "--frames", nargs="+", type=int, default=[16, 32, 64, 128], help="frames of the pre-training step's clips"
    )
    parser.add_argument(
        "--attention", nargs="+", choices=["sdpa", "eager"], default=["sdpa", "eager"], help="of the pre-training step"
    )
    parser.add_argument(
        "--finetune_frames", nargs="+", type=int, default=[64, 128], help="frames of the classifiers' clips"
    )
    parser.add_argument(
        "--memory_frames", nargs="+", type=int, default=[32], help="frames of the clips in the group memory"
    )
    parser.add_argument("--layers", type=int, default=12, help="encoder layers of the classifiers (default: 12)")
    parser.add_argument("--names", nargs="+", help="run only these rows of the groups")
    parser.add_argument(
        "--no_count", action="store_true", help="count neither FLOPs nor saved bytes where that takes a step"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed runs per case, after the one for memory (default: 3)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/benchmark"),
        help="folder; results of earlier runs in it are kept (default: runs/benchmark)",
    )
    return parser


def main() -> None:
    args = parser().parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    cases = [case for group in args.cases for case in GROUPS[group](args)]
    cases = [case for case in cases if not args.names or case.name in args.names]
    run_all(cases, args.repeats, not args.no_count, args.output / "results.jsonl")
    print(write_tables(args.output / "results.jsonl", args.output))


if __name__ == "__main__":
    run(main)
