"""Compute a benchmark's own metrics, or write the file that it takes, from the predictions of evaluate_classifier.py.

    python scripts/challenge.py epic_metrics predictions.parquet epic-kitchens-100-annotations
    python scripts/challenge.py epic_submission predictions.parquet submission.zip --sls_pt 3 --sls_tl 3 --sls_td 3
    python scripts/challenge.py ssv2_submission predictions.parquet submission.csv

epic_metrics prints EPIC-Kitchens-100's accuracies of all segments, of unseen participants and of rare classes; it reads the authors'
lists from a folder. The levels of supervision (--sls_...) are defined at github.com/epic-kitchens/sls.
"""

import json
from typing import Any

from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.evaluation.challenges import (
    SUPERVISION,
    epic_metrics,
    write_epic_submission,
    write_ssv2_submission,
)


def parse_args(argv: list[str] | None = None) -> Any:
    parser = CommandLine(description=__doc__)
    parser.add_argument("task", choices=("epic_metrics", "epic_submission", "ssv2_submission"))
    parser.add_argument("predictions", help="file that evaluate_classifier.py --predictions wrote")
    parser.add_argument("path", help="epic_metrics: folder of the authors' lists; otherwise the file to write")
    for name, what in zip(SUPERVISION, ("pre-training", "training labels", "training data")):
        words = f"epic_submission: level of supervision, {what}, 0 to 5"
        parser.add_argument(f"--{name}", type=int, within="[0, 5]", help=words)
    args = parser.parse_args(argv)
    levels = [getattr(args, name) for name in SUPERVISION]
    if args.task == "epic_submission" and None in levels:
        parser.error(f"Got no --{SUPERVISION[levels.index(None)]}, expected a level from 0 to 5: add it.")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.task == "epic_metrics":
        print(json.dumps(epic_metrics(args.predictions, args.path), indent=2))
    elif args.task == "epic_submission":
        levels = {name: getattr(args, name) for name in SUPERVISION}
        print(f"{write_epic_submission(args.path, args.predictions, levels):,} segments: {args.path}")
    else:
        print(f"{write_ssv2_submission(args.path, args.predictions):,} videos: {args.path}")


if __name__ == "__main__":
    run(main)
