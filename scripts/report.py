"""Summarize a run of the three stages: a table of results, pictures of test clips, and the pipeline's answer for one of them.

    python scripts/report.py RUN_DIR DATA_DIR

RUN_DIR holds the output folders `tokenizer`, `pretrain` and `finetune` of train_tokenizer.py, pretrain.py and finetune.py. DATA_DIR is
the folder of videos that they were trained on. Other classifiers in folders `finetune-...` get rows of their own. Pictures are written to
RUN_DIR/pictures, the tables to RUN_DIR/report.md.
"""

import json
import math
from pathlib import Path
from typing import Any

from transformers import default_data_collator, pipeline

from transformers_lvmae import FSQMagViTModel, LVMAEConfig, LVMAEForPreTraining, LVMAEVideoProcessor
from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.data import MaskedVideoClips, VideoReading, load_video_dataset, select_split
from transformers_lvmae.files import write_aside
from transformers_lvmae.targets.builder import TargetBuilder
from transformers_lvmae.training.run_folder import read_settings
from transformers_lvmae.visualization.drawing import save_rows
from transformers_lvmae.visualization.predictions import prediction_panels


NUM_PICTURES = 4


def results_table(run: Path) -> str:
    """Return the run's figures as a Markdown table."""
    tokenizer = json.loads((run / "tokenizer" / "eval_results.json").read_text())
    losses = [
        entry["loss"]
        for entry in json.loads((run / "pretrain" / "trainer_state.json").read_text())["log_history"]
        if "loss" in entry
    ]
    test = json.loads((run / "finetune" / "test_results.json").read_text())
    chance, clips = 1 / test["test_classes"], test["test_samples"]
    error = math.sqrt(chance * (1 - chance) / clips)
    rows = [
        ("tokenizer: PSNR, all tokens", f"{tokenizer['eval_psnr']:.2f} dB"),
        ("tokenizer: PSNR, first slot and 10 % of the tokens", f"{tokenizer['eval_psnr_kept_10']:.2f} dB"),
        ("copying the first frame of each window: PSNR", f"{tokenizer['eval_psnr_first_frame']:.2f} dB"),
        ("pre-training: first loss", f"{losses[0]:.4f}"),
        ("pre-training: last loss", f"{losses[-1]:.4f}"),
        ("classifier: test accuracy", f"{test['test_accuracy']:.3f}"),
        ("test clips", f"{clips} of {test.get('test_samples_total', clips)}"),
        ("chance", f"{chance:.3f}"),
        ("accuracy above chance, in standard errors of chance", f"{(test['test_accuracy'] - chance) / error:.1f}"),
    ]
    return "\n".join(["| figure | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def classifiers_table(run: Path) -> str:
    """Return a Markdown table of the classifiers of a run, whose folders are `finetune` and `finetune-...`."""
    lines = ["| classifier | tokens kept | starts from | test accuracy |", "| --- | --- | --- | --- |"]
    for results in sorted(run.glob("finetune*/test_results.json")):
        folder = results.parent
        config = LVMAEConfig.from_pretrained(folder)
        start = (read_settings(folder) or {"settings": {}})["settings"].get("model_name_or_path")
        accuracy = json.loads(results.read_text())["test_accuracy"]
        kept = "all" if config.token_keep_ratio == 1 else f"1/{1 / config.token_keep_ratio:g}, {config.token_selection}"
        lines.append(f"| {folder.name} | {kept} | {Path(start).name if start else 'random weights'} | {accuracy:.3f} |")
    return "\n".join(lines)


def draw_pictures(run: Path, rows: Any, num_clips: int) -> list[int]:
    """Draw the first `num_clips` clips that can be read: frames, tokenizer, importance, both masks and the model's predictions.

    Returns the numbers of their rows.
    """
    tokenizer = FSQMagViTModel.from_pretrained(run / "tokenizer")
    model = LVMAEForPreTraining.from_pretrained(run / "pretrain")
    processor, config = LVMAEVideoProcessor.from_pretrained(run / "pretrain"), model.config
    builder = TargetBuilder(config, processor, tokenizer, embed=model.lvmae.embeddings.patch_embeddings)
    masks: dict[str, Any] = {"grid_size": config.grid_size, "mask_ratio": config.mask_ratio}
    masks["encoder_mask"] = config.encoder_mask
    reading = VideoReading(on_error="skip", max_broken_share=1.0)
    clips = MaskedVideoClips(rows, processor, config.num_frames, reading=reading, **masks)
    (run / "pictures").mkdir(exist_ok=True)
    drawn: list[int] = []
    moments = [round(number * (config.num_frames - 1) / 9) for number in range(10)]
    for number in range(len(rows)):
        if len(drawn) == num_clips:
            break
        clip = clips[number]
        if clip.pop("is_readable"):
            panels = prediction_panels(model, builder, default_data_collator([clip]))
            title = f"test clip {number}: {rows[number].get('label', '')}"
            save_rows(run / "pictures" / f"clip_{number}.png", panels, moments, title)
            drawn.append(number)
    return drawn


def main() -> None:
    parser = CommandLine(description=__doc__)
    parser.add_argument("run", type=Path, help="folder with tokenizer, pretrain and finetune")
    parser.add_argument("data", help="folder of videos with a test split")
    args = parser.parse_args()
    rows = select_split(load_video_dataset(args.data), "test")
    drawn = draw_pictures(args.run, rows, NUM_PICTURES)
    if not drawn:
        raise ValueError(f"Got {len(rows)} test videos of which none can be read, expected some to play: repair them.")
    row = rows[drawn[0]]
    answers = pipeline("video-classification", model=str(args.run / "finetune"))(row["video"]["path"], top_k=3)
    table = f"{results_table(args.run)}\n\n{classifiers_table(args.run)}"
    write_aside(args.run / "report.md", table + "\n")
    print(f"\n{row['video']['path']} is {row['label']}; the pipeline says")
    print(*(f"  {answer['label']} {answer['score']:.3f}" for answer in answers), sep="\n")
    print(f"\n{table}\n\nPictures: {args.run / 'pictures'}")


if __name__ == "__main__":
    run(main)
