"""Turn a benchmark's official annotation files into a dataset that the other scripts read.

    python scripts/prepare_dataset.py diving48 --annotations Diving48_V2_train.json Diving48_V2_test.json Diving48_vocab.json \\
        --videos rgb --output data/diving48

Annotations are files under their official names, or folders that hold them. The dataset, a `datasets.DatasetDict` on disk, has the
columns video (path), start and end (seconds, where clips are parts of videos) and label, or verb and noun. Videos are not copied;
clips whose video is missing are left out, counted, and their videos named in missing_videos.txt beside the dataset.
"""

import argparse
from pathlib import Path

from transformers_lvmae.data.annotation_formats import BENCHMARKS, compare_with_known, read_annotations
from transformers_lvmae.data.annotations import AnnotationError, Annotations, BuiltDataset, build_dataset


SHOWN_NAMES = 5


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(BENCHMARKS), help="the benchmark, or csv for a table of your own")
    parser.add_argument("--annotations", nargs="+", required=True, help="official annotation files, or their folders")
    parser.add_argument("--videos", required=True, help="folder of the videos, sub-folders included")
    parser.add_argument("--output", type=Path, required=True, help="folder of the dataset")
    return parser.parse_args(argv)


def report(name: str, annotations: Annotations, built: BuiltDataset) -> list[str]:
    """Lines about what was found and what was not."""
    lines = compare_with_known(name, annotations)
    for split, rows in built.splits.items():
        lines.append(f"{split}: {len(rows):,} clips with their videos, {built.missing_clips[split]:,} without")
    for what, names in (("missing", built.missing_videos), ("there more than once", built.ambiguous_videos)):
        if names:
            more = ", ..." if len(names) > SHOWN_NAMES else ""
            lines.append(f"{len(names):,} videos are {what}: {', '.join(names[:SHOWN_NAMES])}{more}")
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
    main()
