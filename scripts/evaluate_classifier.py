"""Evaluate a fine-tuned model with one or more views per video: accuracies, also by class and by length of the clips; predictions.

    python scripts/evaluate_classifier.py --model_name_or_path runs/finetune --dataset_name data/diving48 --split test \\
        --output_dir runs/finetune/test
    accelerate launch --num_processes 8 scripts/evaluate_classifier.py ...

Probabilities are averaged over `temporal_views` x `spatial_views` views of a video. A model of 32 frames with --temporal_views 4 averages four
chunks of 32 frames, like the paper's multi-crop baseline, whose number of chunks is not known. Several processes give the same numbers as one: every video
counts once. The output folder gets results.json, model_card.yaml (metadata of a model card), classes.csv and confusion_matrix.png.

--predictions FILE.parquet writes the probabilities of every row, also for a split without labels, which then has no other results.
A video that cannot be read is left out of the numbers and named in broken_videos.json of the output folder.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from transformers_lvmae.command_line import check_ranges, run
from transformers_lvmae.data import FrameSampling, VideoReading, load_video_dataset, select_split
from transformers_lvmae.data.arguments import VideoAccessArguments
from transformers_lvmae.data.broken_videos import BrokenVideos
from transformers_lvmae.evaluation.prediction_files import write_predictions
from transformers_lvmae.evaluation.reports import write_evaluation
from transformers_lvmae.evaluation.views import VideoViews, check_classes, predict
from transformers_lvmae.sharing.loading import load_classifier, load_processor
from transformers_lvmae.training.arguments import parse_arguments


@dataclass
class EvaluationArguments(VideoAccessArguments):
    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of a fine-tuned model."})
    dataset_name: str = field(metadata={"help": "A dataset on disk, a folder of videos, or a dataset id on the Hub."})
    output_dir: str = field(metadata={"help": "Folder of the results."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    video_column: str = field(default="video", metadata={"help": "Column with the videos."})
    label_column: str = field(
        default="label", metadata={"help": "Column with the classes; 'verb,noun' for two label sets."}
    )
    frame_stride: int | None = field(
        default=None,
        metadata={
            "help": "Source frames from one sampled frame to the next. Default: evenly over the video, or over the view's part of it.",
            "within": "[1, inf)",
        },
    )
    frame_jitter: bool = field(
        default=False,
        metadata={"help": "Sample the middle frame of each of equal parts, for models trained with frame_jitter."},
    )
    short_videos: str = field(
        default="stretch",
        metadata={
            "help": "What to do with too few frames: stretch (repeat each evenly), loop, or pad (repeat the last)."
        },
    )
    temporal_views: int = field(
        default=1, metadata={"help": "Clips per video, from its beginning to its end.", "within": "[1, inf)"}
    )
    spatial_views: int = field(
        default=1, metadata={"help": "Crops per clip along its longer side.", "within": "[1, inf)"}
    )
    batch_size: int = field(
        default=8, metadata={"help": "Clips per forward pass on each process.", "within": "[1, inf)"}
    )
    num_workers: int = field(
        default=0,
        metadata={"help": "Processes that decode videos, per process that runs the model.", "within": "[0, inf)"},
    )
    predictions: str | None = field(
        default=None, metadata={"help": "Parquet file for the probabilities of every row; the split needs no labels."}
    )
    on_error: str = field(
        default="skip", metadata={"help": "If a video cannot be read: skip (leave it out and report it) or raise."}
    )
    max_broken_share: float = field(
        default=0.1, metadata={"help": "Largest share of videos that may be broken.", "within": "[0, 1]"}
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        VideoReading(on_error=self.on_error)
        FrameSampling(self.frame_stride, self.frame_jitter, self.short_videos)


def load_rows(args: EvaluationArguments) -> tuple[Any, list[str]]:
    """Return the rows of the split and its label columns: none if only predictions are asked for and no row has a label."""
    columns, source = args.label_column.split(","), (args.dataset_name, args.dataset_config_name, args.video_column)
    if args.predictions:
        rows = select_split(load_video_dataset(*source), args.split)
        if any(name not in rows.column_names or set(rows[name]) <= {None, -1, ""} for name in columns):
            return rows, []
    return select_split(load_video_dataset(*source, columns), args.split, label_column=columns), columns


def main() -> None:
    (args,) = parse_arguments(EvaluationArguments)
    accelerator = Accelerator()
    model = load_classifier(args.model_name_or_path)
    rows, columns = load_rows(args)
    if columns:
        check_classes(model.config, rows, columns)
    broken_folder = os.path.join(args.output_dir, "broken_videos")
    if accelerator.is_main_process:
        shutil.rmtree(broken_folder, ignore_errors=True)  # of an earlier evaluation
    accelerator.wait_for_everyone()
    broken = BrokenVideos(broken_folder, args.max_broken_share)
    views = VideoViews(
        rows,
        load_processor(args.model_name_or_path, model.config),
        model.config.num_frames,
        FrameSampling(args.frame_stride, args.frame_jitter, args.short_videos),
        args.temporal_views,
        args.spatial_views,
        video_column=args.video_column,
        label_column=columns[0] if len(columns) == 1 else columns or None,
        broken=broken if args.on_error == "skip" else None,
        access=args.access_to(args.dataset_name),
    )
    with broken.reported():
        predictions = predict(model, views, accelerator, args.batch_size, args.num_workers)
    if accelerator.is_main_process and args.predictions:
        write_predictions(args.predictions, predictions, views, model.config)
        print(f"Predictions of {len(predictions.probabilities):,} of {len(rows):,} rows: {args.predictions}")
    if accelerator.is_main_process and not columns:
        print(
            f"No labels in column {args.label_column!r} of split {args.split!r}: nothing but the predictions was written."
        )
    elif accelerator.is_main_process:
        about = {"model": args.model_name_or_path, "dataset": args.dataset_name, "split": args.split}
        about["num_frames"] = model.config.num_frames
        for name in ("frame_stride", "frame_jitter", "short_videos", "temporal_views", "spatial_views"):
            about[name] = getattr(args, name)
        results = write_evaluation(args.output_dir, predictions, model.config, about)
        print(json.dumps(results["metrics"], indent=2))
        print(f"on {results['clips']:,} of {results['clips_total']:,} clips")
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
