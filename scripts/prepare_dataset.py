"""Convert a benchmark's official annotation files into a dataset that the other scripts read.

    python scripts/prepare_dataset.py diving48 --annotations Diving48_V2_train.json Diving48_V2_test.json Diving48_vocab.json \\
        --videos rgb --output data/diving48

Annotations are files under their official names, or folders that hold them. The dataset is a `datasets.DatasetDict` on disk with the
columns video (path), label (or verb and noun), and start and end in seconds if clips are parts of videos. A test split that was
published without labels has no label columns. Rows keep the ids that submissions need. Videos are not copied. Clips without a video are
left out and counted, and missing_videos.txt in the output folder lists the videos.
"""

import argparse
from pathlib import Path

from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.data.annotation_formats import BENCHMARKS, compare_with_known, read_annotations
from transformers_lvmae.data.annotations import Annotations, BuiltDataset, build_dataset
from transformers_lvmae.data.tables import AnnotationError


SHOWN_NAMES = 5


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandLine(description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHMARKS), help="the benchmark, or csv for your own table")
    parser.add_argument("--annotations", nargs="+", required=True, help="official annotation files, or their folders")
    parser.add_argument("--videos", required=True, help="folder of the videos; its sub-folders are searched, too")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the dataset to")
    return parser.parse_args(argv)


def report(name: str, annotations: Annotations, built: BuiltDataset) -> list[str]:
    """Return lines on the clips found, the videos missing and the known counts of the benchmark."""
    lines = compare_with_known(name, annotations)
    for split, missing in built.missing_clips.items():
        present = len(built.splits[split]) if split in built.splits else 0
        lines.append(f"{split}: {present:,} clips with their videos, {missing:,} without")
    names = built.missing_videos
    if names:
        more = ", ..." if len(names) > SHOWN_NAMES else ""
        lines.append(f"{len(names):,} videos are missing: {', '.join(names[:SHOWN_NAMES])}{more}")
    return lines


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        annotations = read_annotations(args.name, args.annotations)
        built = build_dataset(annotations, args.videos)
    except AnnotationError as error:
        raise SystemExit(str(error)) from None
    built.splits.save_to_disk(args.output)
    missing = args.output / "missing_videos.txt"
    missing.write_text("".join(f"{name}\n" for name in built.missing_videos))
    print(*report(args.name, annotations, built), f"saved to {args.output}", sep="\n")


if __name__ == "__main__":
    run(main)
