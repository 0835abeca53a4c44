"""Pre-train a tiny model with every combination of decoder mask, encoder mask and target, and check each.

    python studies/compare_masks.py tests/fixtures/clips --output masks.md

Each combination trains for a few steps on one batch. Then its loss must be finite and lower than before; every clip must show and decode
exactly as many tokens as the config says; and the loss must depend on the prediction at every decoded token that is hidden, and at no
visible token. The script prints a Markdown table and the error messages of invalid combinations, and exits with status 1 if a check
fails. The tokenizer has random weights: the losses show that a combination trains, not how good it is.
"""

import itertools
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed

from transformers_lvmae import (
    FSQMagViTConfig,
    FSQMagViTModel,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEPreTrainer,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.command_line import CommandLine
from transformers_lvmae.data import MaskedVideoClips, load_video_dataset, processor_for, select_split
from transformers_lvmae.models.configuration_lvmae import DECODER_MASKS


# 4 x 4 x 4 tokens of 2 x 8 x 8 pixels, of which 16 are visible and, with a decoder mask, 12 + 6 decoded.
MODEL: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_frames": 8, "hidden_size": 32, "num_hidden_layers": 1}
MODEL |= {"num_attention_heads": 4, "intermediate_size": 64, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1}
MODEL |= {"decoder_num_attention_heads": 4, "decoder_intermediate_size": 64, "levels": (8, 8, 5)}
MODEL |= {"mask_ratio": 0.75, "decoder_mask_ratio": 0.8, "decoder_random_ratio": 0.1}
TOKENIZER: dict[str, Any] = {
    "image_size": 16,
    "num_frames": 8,
    "window_size": 8,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
}
TOKENIZER |= {"temporal_downsample": (True,), "num_res_blocks": 1, "stem_patch_size": (1, 2, 2), "levels": (8, 8, 5)}


def choices(name: str) -> tuple[str, ...]:
    """Return the allowed values of a field of the config."""
    if name == "decoder_mask":
        return tuple(DECODER_MASKS)
    return get_args({field.name: field.type for field in fields(LVMAEConfig)}[name])


@dataclass
class Result:
    """The result of a combination: `losses` of its steps, token counts of each clip of a batch, and the size of the gradient of that
    batch's loss with respect to the predictions, the largest at visible tokens and the smallest at hidden ones."""

    config: LVMAEConfig
    losses: list[float]
    visible: list[int]
    decoded: list[int]
    decoded_visible: list[int]
    visible_gradient: float
    hidden_gradient: float

    def faults(self) -> list[str]:
        """Return a sentence for each check that fails."""
        slots, height, width = self.config.grid_size
        shown = slots * (height * width - int(self.config.mask_ratio * height * width))
        checks = {
            f"losses {self.losses} that are not finite": all(map(math.isfinite, self.losses)),
            f"losses {self.losses} that do not fall": len(self.losses) < 2 or self.losses[-1] < self.losses[0],
            f"{self.visible} visible tokens, not {shown}": set(self.visible) == {shown},
            f"{self.decoded} decoded tokens, not {self.config.token_budget}": set(self.decoded)
            == {self.config.token_budget},
            f"a gradient of {self.visible_gradient} at visible tokens": self.visible_gradient == 0,
            f"a gradient of {self.hidden_gradient} at hidden tokens": self.hidden_gradient > 0,
        }
        return [fault for fault, passed in checks.items() if not passed]


def make_trainer(rows: Dataset, folder: str, options: dict[str, Any], steps: int = 1, **kwargs: Any) -> Any:
    """Make the `LVMAEPreTrainer` of a combination. Clips and initial weights are always the same."""
    set_seed(0)
    tokenizer = FSQMagViTModel(FSQMagViTConfig(**TOKENIZER))
    config = LVMAEConfig(**{**MODEL, **options})
    processor = processor_for(config)
    clips = MaskedVideoClips(
        rows,
        processor,
        config.num_frames,
        grid_size=config.grid_size,
        mask_ratio=config.mask_ratio,
        encoder_mask=config.encoder_mask,
    )
    arguments = LVMAEPreTrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        base_learning_rate=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **kwargs.pop("arguments", {}),
    )
    kwargs = {"processing_class": processor, "video_tokenizer": tokenizer, **kwargs}
    trainer = LVMAEPreTrainer(LVMAEForPreTraining(config), arguments, train_dataset=clips, **kwargs)
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(rows: Dataset, folder: str, options: dict[str, Any], steps: int) -> Result:
    """Train a combination for some steps, then check one batch."""
    trainer = make_trainer(rows, folder, options, steps)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return judge(trainer, losses)


def judge(trainer: Any, losses: list[float]) -> Result:
    """Count the tokens of a batch and measure its gradients."""
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[number] for number in range(2)]))
    output = trainer.model(**trainer.target_builder(batch))
    (gradient,) = torch.autograd.grad(output.loss, output.logits)
    sizes = gradient.abs().amax(dim=-1).flatten()  # decoded tokens of all clips, in ascending order of position
    hidden = output.bool_masked_pos[output.bool_decoded_pos]
    return Result(
        config=trainer.model.config,
        losses=losses,
        visible=(~output.bool_masked_pos).sum(dim=1).tolist(),
        decoded=output.bool_decoded_pos.sum(dim=1).tolist(),
        decoded_visible=(output.bool_decoded_pos & ~output.bool_masked_pos).sum(dim=1).tolist(),
        visible_gradient=max(sizes[~hidden].tolist(), default=0.0),
        hidden_gradient=min(sizes[hidden].tolist()),
    )


def results_table(results: dict[tuple[str, str, str], Result], targets: tuple[str, ...]) -> str:
    """Return Markdown: a row for each pair of masks, a column with first and last loss for each target."""
    lines = [
        f"| decoder mask | encoder mask | visible | decoded | of these visible | {' | '.join(targets)} |",
        "|" + " --- |" * (5 + len(targets)),
    ]
    for decoder, encoder in dict.fromkeys((decoder, encoder) for decoder, encoder, _ in results):
        row = [results[decoder, encoder, target] for target in targets]
        counts = [" to ".join(map(str, sorted({min(values), max(values)}))) for values in
                  (row[0].visible, row[0].decoded, row[0].decoded_visible)]  # fmt: skip
        losses = [
            " FAILED" if result.faults() else f"{result.losses[0]:.3f} > {result.losses[-1]:.3f}" for result in row
        ]
        lines.append(f"| {' | '.join([decoder, encoder, *counts, *losses])} |")
    return "\n".join(lines)


def refusals(rows: Dataset, folder: str) -> dict[str, Callable[[], Any]]:
    """Return invalid combinations: a description, and a call that tries each."""

    def first_step(options: dict[str, Any], cached: tuple[str, ...] = (), **kwargs: Any) -> None:
        trainer = make_trainer(rows, folder, options, **kwargs)
        batch = trainer.data_collator([trainer.train_dataset[0]])
        cache = {"target_codes": torch.zeros(1, 64, 3), "importance_scores": torch.zeros(1, 64)}
        trainer.target_builder({**batch, **{name: cache[name] for name in cached}})

    without: dict[str, Any] = {"video_tokenizer": None}
    model = LVMAEForPreTraining(LVMAEConfig(**{**MODEL, "target_type": "pixels"}))
    return {
        "adaptive mask, pixels, neither tokenizer nor cached scores": lambda: first_step(
            {"target_type": "pixels", "decoder_mask": "adaptive"}, **without
        ),
        "codes, neither tokenizer nor cache": lambda: first_step({"decoder_mask": "random"}, **without),
        "latents, a cache of codes alone": lambda: first_step(
            {"target_type": "latents"}, ("target_codes", "importance_scores"), **without
        ),
        "pixels, and codes given to the model": lambda: model(
            torch.zeros(1, 8, 3, 32, 32), target_codes=torch.zeros(1, 64, 3)
        ),
        "flow, no processor that knows the clips' pixels": lambda: first_step(
            {"decoder_mask": "flow", "target_type": "pixels"}, processing_class=None, **without
        ),
        "RAFT's weights, another mask than flow": lambda: first_step(
            {"decoder_mask": "everest"}, arguments={"raft_weights": "raft.pth"}
        ),
        "an encoder mask of another name": lambda: LVMAEConfig(encoder_mask="tubes"),  # type: ignore[arg-type]
    }


def refusals_table(attempts: dict[str, Callable[[], Any]]) -> tuple[str, list[str]]:
    """Return Markdown with the error message of each, and the descriptions of those that raise no error."""
    lines, accepted = ["| refused | told |", "| --- | --- |"], []
    for name, attempt in attempts.items():
        try:
            attempt()
            accepted.append(name)
            lines.append(f"| {name} | nothing: FAILED |")
        except Exception as error:
            lines.append(f"| {name} | {str(error.__cause__ or error).strip().splitlines()[-1].strip()} |")
    return "\n".join(lines), accepted


def main(argv: list[str] | None = None) -> None:
    parser = CommandLine(description=__doc__)
    parser.add_argument("data", help="folder of videos with a train split")
    parser.add_argument("--output", type=Path, default=None, help="file to which the tables are also written")
    parser.add_argument("--steps", type=int, default=4, help="training steps per combination (default: %(default)s)")
    for name in ("decoder_mask", "encoder_mask", "target_type"):
        parser.add_argument(f"--{name}", nargs="+", default=choices(name), help="values to try (default: all)")
    args = parser.parse_args(argv)
    rows = select_split(load_video_dataset(args.data), "train", 4)
    results, faults = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for decoder, encoder, target in itertools.product(args.decoder_mask, args.encoder_mask, args.target_type):
            options = {"decoder_mask": decoder, "encoder_mask": encoder, "target_type": target}
            result = results[decoder, encoder, target] = run(rows, folder, options, args.steps)
            faults += [f"{decoder}, {encoder}, {target}: {fault}" for fault in result.faults()]
        told, accepted = refusals_table(refusals(rows, folder))
    faults += [f"not refused: {name}" for name in accepted]
    text = f"{results_table(results, tuple(args.target_type))}\n\n{told}\n"
    if args.output is not None:
        args.output.write_text(text)
    print(f"\n{text}\n{len(results)} combinations, {len(faults)} faults", *faults, sep="\n")
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
