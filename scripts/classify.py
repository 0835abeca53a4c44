"""Classify video files with a fine-tuned model.

    python scripts/classify.py runs/finetune VIDEO.mp4 [MORE.mp4 FOLDER ...]
    python scripts/classify.py runs/finetune film.mp4 --start 12.5 --end 15 --output answers.jsonl

A folder stands for all videos in it and its sub-folders. --output writes a line for each answer, as JSON lines or CSV by its ending. A
video that cannot be read is named on stderr; the others are classified, and the exit status is 1.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import torch

from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.data import VideoClips
from transformers_lvmae.data.video_files import find_files, is_video, report_ignored
from transformers_lvmae.evaluation.prediction_files import head_columns
from transformers_lvmae.evaluation.views import split_probabilities
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.models.video_sources import video_name
from transformers_lvmae.sharing.loading import load_classifier, load_processor


COLUMNS = ("video", "start", "end", "set", "rank", "label", "score")


def parse_args(argv: list[str] | None = None) -> Any:
    parser = CommandLine(description=__doc__)
    parser.add_argument("model", help="folder or Hub id of a fine-tuned model")
    parser.add_argument("videos", nargs="+", help="video files, or folders of them")
    parser.add_argument("--start", type=float, within="[0, inf)", help="seconds where the part to classify begins")
    parser.add_argument("--end", type=float, within="(0, inf)", help="seconds where it ends")
    parser.add_argument(
        "--top_k", type=int, within="[1, inf)", default=3, help="classes to print per video (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="file of the answers, .jsonl or .csv")
    args = parser.parse_args(argv)
    if args.output is not None and args.output.suffix not in (".jsonl", ".csv"):
        parser.error(f"Got --output {args.output}, expected a name that ends in .jsonl or .csv: rename it.")
    if args.end is not None and args.end <= (args.start or 0):
        parser.error(f"Got --start {args.start} and --end {args.end}, expected an end after the start: correct them.")
    return args


def find_videos(names: list[str]) -> list[str]:
    """Replace each folder by its videos; raise ValueError if it has none."""
    videos: list[str] = []
    for name in names:
        if not Path(name).is_dir():
            videos.append(name)
            continue
        found = find_files(name)
        inside = list(filter(is_video, found.files))
        if not inside:
            raise ValueError(f"Got folder {name} without videos, expected at least one: correct the path.")
        report_ignored(
            found.root, sorted({*found.files, *found.hidden} - {*inside}), "they are hidden or no video files"
        )
        videos += [str(Path(name) / file) for file in inside]
    return videos


@torch.inference_mode()
def classify(model: Any, clip: torch.Tensor, top_k: int) -> list[dict[str, Any]]:
    """Return the `top_k` best classes of a clip (T, C, H, W), for each label set of the model.

    Logits that are not finite raise ValueError.
    """
    logits = model(clip[None].to(model.device)).logits.cpu()
    if not logits.isfinite().all():
        raise ValueError(
            f"Got logits that are not finite from {model.name_or_path}, expected numbers: the model has diverged in training; use an "
            "earlier checkpoint."
        )
    answers = []
    scores = split_probabilities(logits, model.config.label_slices)[0]
    for name, (_, part, labels) in head_columns(model.config).items():
        best = scores[part].topk(min(top_k, len(labels)))
        for rank, (score, number) in enumerate(zip(best.values.tolist(), best.indices.tolist()), start=1):
            answers.append({"set": name, "rank": rank, "label": labels[number], "score": score})
    return answers


def write_answers(path: Path, answers: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(answers)
        else:
            file.writelines(json.dumps(answer) + "\n" for answer in answers)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    model: Any = load_classifier(args.model).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    rows = [{"video": video, "start": args.start, "end": args.end} for video in find_videos(args.videos)]
    clips = VideoClips(rows, load_processor(args.model, model.config), model.config.num_frames)
    answers, faults = [], 0
    for number, row in enumerate(rows):
        name = video_name(row["video"])
        try:
            clip = clips[number]["pixel_values_videos"]
        except VideoReadError as error:
            faults += 1
            print(error, file=sys.stderr)
            continue
        found = classify(model, clip, args.top_k)
        prefix = "{set}: " if model.config.label_slices else ""
        print(name, *((prefix + "{label} {score:.3f}").format(**answer) for answer in found), sep="\n  ")
        answers += [{**row, "video": name, **answer} for answer in found]
    if args.output is not None:
        write_answers(args.output, answers)
    if faults:
        print(f"{faults} of {len(rows)} videos could not be read.", file=sys.stderr)
    return int(faults > 0)


if __name__ == "__main__":
    run(main)
