"""The cases of each group, one explicit row a case: what is built, at which size, and the reference figures it has beforehand.

The first case of a group is the one that the others are compared with.
"""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import data_work as data
import model_work as models
import torch

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.cost import classification_cost, count_step, pretraining_cost


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Args:
        build: a function of model_work.py or data_work.py with its arguments.
        backward: the work returns a loss, whose backward pass belongs to it.
        clips: clips that the work reads; times are given per clip.
        figures: counts reference figures without running the work ("flops", "saved", "computed"; bytes). Where it is given, the
            work is not counted while it runs.
        files: makes the files that the work reads, so that no measured process has to.
        runs: False = only `figures`, for work that does not fit into the memory.
    """

    group: str
    name: str
    build: partial
    backward: bool = False
    clips: int = 1
    figures: partial | None = None
    files: partial | None = None
    runs: bool = True

    def record(self) -> dict[str, Any]:
        """What results.jsonl holds of the case in each line."""
        return {"group": self.group, "name": self.name, "build": self.build.func.__name__, **self.build.keywords}


VARIANTS: dict[str, dict[str, Any]] = {
    "LVMAE": {},
    "LVMAE, nothing recomputed": {"recompute": False},
    "LVMAE, MLP checkpointed": {"checkpointing": "mlp"},
    "LVMAE, layers checkpointed": {"checkpointing": "layer"},
}


def lvmae_figures(
    size: Any, frames: int, attention: Any, budget: float = 0.15, recompute: bool = True, checkpointing: Any = "none"
) -> dict[str, float]:
    """FLOPs and saved bytes of `model_work.lvmae_step`."""
    config = LVMAEConfig.from_size(size, num_frames=frames, recompute_activations=recompute)
    hidden = frames // 2 * int(0.9 * 196)
    decoded = hidden if budget == 1 else int(budget * config.seq_length)
    cost = pretraining_cost(config, attention=attention, checkpointing=checkpointing, decoded_tokens=decoded)
    return {"flops": cost.flops, "saved": cost.saved_bytes}


class KnownMask(tuple):
    """Indices of True in a mask, in place of the mask: on the meta device, nobody can ask a mask how many of them it has."""

    inverse: "KnownMask"

    @classmethod
    def of(cls, true: int, false: int) -> "KnownMask":
        mask, inverse = (cls(torch.zeros(2, count, dtype=torch.long)) for count in (true, false))
        mask.inverse = inverse
        return mask

    def __invert__(self) -> "KnownMask":
        return self.inverse


def videomae_figures(size: str, frames: int, attention: str) -> dict[str, float]:
    """FLOPs and saved bytes of `model_work.videomae_step`, counted on the meta device."""
    from transformers.models.videomae import modeling_videomae

    # Its table of positions is made in a Python loop: 20 seconds at 128 frames.
    table = mock.patch.object(modeling_videomae, "get_sinusoid_encoding_table", lambda n, d: torch.zeros(1, n, d))
    with table, torch.device("meta"):
        model = models.videomae_model(size, frames, "fused_on_meta" if attention == "sdpa" else attention)
        clips = torch.zeros(1, frames, 3, 224, 224)
        visible = frames // 2 * (196 - int(0.9 * 196))
        mask = KnownMask.of(frames // 2 * 196 - visible, visible)
    cost = count_step(model, clips, bool_masked_pos=mask)
    return {"flops": cost.flops, "saved": cost.saved_bytes}


def fine_tuning_figures(
    frames: int, batch: int = 1, checkpointing: Any = "none", lora_rank: int = 0, mixing: bool = False
) -> dict[str, float]:
    """Peak, saved bytes and FLOPs of `model_work.lvmae_fine_tuning`, above weights, AdamW's moments and the batch."""
    adapt = partial(models.add_lora, rank=lora_rank)
    config = LVMAEConfig(num_frames=frames, **models.LABELS)
    cost = classification_cost(config, batch, checkpointing=checkpointing, mixing=mixing, adapt=adapt)
    computed = cost.step_bytes + (
        cost.input_bytes // 2 if mixing else 0
    )  # of the two batches, one exists before the step
    return {"computed": computed, "saved": cost.saved_bytes, "flops": cost.flops}


def lvmae_step_case(group: str, name: str, **fields: Any) -> Case:
    build, figures = partial(models.lvmae_step, **fields), partial(lvmae_figures, **fields)
    return Case(group, name, build, backward=True, figures=figures)


def step_cases(args: Namespace) -> Iterator[Case]:
    for size in args.sizes:
        for attention in args.attention:
            for frames in args.frames:
                group = f"Pre-training step, ViT-{size[0].upper()}, {frames} frames, {attention}"
                fields: dict[str, Any] = {"size": size, "frames": frames, "attention": attention}
                videomae = partial(models.videomae_step, **fields)
                if size == "base" and attention == "eager" and frames == 128:
                    name, figures = "VideoMAE (not run: 24 GB; counted)", partial(videomae_figures, **fields)
                    yield Case(group, name, videomae, figures=figures, runs=False)
                else:
                    yield Case(group, "VideoMAE", videomae, backward=True)
                v2 = partial(models.videomae_v2_step, **fields)
                yield Case(group, "VideoMAE V2's 50 % decoder", v2, backward=True)
                for name, variant in VARIANTS.items():
                    yield lvmae_step_case(group, name, **fields, **variant)


def budget_cases(args: Namespace) -> Iterator[Case]:
    group = "Decoder budget, ViT-B, 128 frames"
    for budget in (1, 0.5, 0.25, 0.15, 0.1, 0.05):
        name = "all hidden tokens" if budget == 1 else f"{budget:.0%} of the tokens"
        yield lvmae_step_case(group, name, size="base", frames=128, attention="sdpa", budget=budget)


def finetune_cases(args: Namespace) -> Iterator[Case]:
    for training in (False, True):
        for frames in args.finetune_frames:
            kind = "Fine-tuning step" if training else "Forward"
            depth = "" if args.layers == 12 else f" with {args.layers} of 12 layers"
            group = f"{kind}, ViT-B{depth}, {frames} frames, sdpa"
            fields = {"frames": frames, "layers": args.layers, "training": training}
            yield Case(group, "VideoMAE", partial(models.videomae_classifier, **fields), backward=training)
            yield Case(group, "V-JEPA 2", partial(models.vjepa2_classifier, **fields), backward=training)
            for name, variant in VARIANTS.items() if training else [("LVMAE", {})]:
                yield Case(group, name, partial(models.lvmae_classifier, **fields, **variant), backward=training)


def chosen_cases(args: Namespace) -> Iterator[Case]:
    """A classifier on chosen tokens, and long clips at the budget of short ones."""
    for training in (False, True):
        group = f"{'Fine-tuning step' if training else 'Forward'} on chosen tokens, ViT-B"
        for frames, keep_ratio in ((128, 1.0), (128, 0.25), (128, 0.125), (512, 0.0625)):
            fields = {"frames": frames, "layers": args.layers, "training": training, "keep_ratio": keep_ratio}
            kept = "all tokens" if keep_ratio == 1 else f"{keep_ratio:.3g} of the tokens"
            yield Case(group, f"{frames} frames, {kept}", partial(models.lvmae_classifier, **fields), backward=training)


def memory_cases(args: Namespace) -> Iterator[Case]:
    """Measured and counted peaks of whole fine-tuning steps."""
    kinds: dict[str, dict[str, Any]] = {
        "all weights": {},
        "all weights, MLP checkpointed": {"checkpointing": "mlp"},
        "LoRA of rank 8": {"lora_rank": 8},
        "LoRA of rank 8, MLP checkpointed": {"lora_rank": 8, "checkpointing": "mlp"},
        "all weights, MLP checkpointed, 2 mixed clips": {"checkpointing": "mlp", "batch": 2, "mixing": True},
    }
    for frames in args.memory_frames:
        group = f"Memory of a fine-tuning step, ViT-B, {frames} frames, float32"
        for name, kind in kinds.items():
            fields: dict[str, Any] = {"frames": frames, **kind}
            build, figures = partial(models.lvmae_fine_tuning, **fields), partial(fine_tuning_figures, **fields)
            yield Case(group, name, build, figures=figures)


TOKENIZERS = {"default": "base", "MAGVIT-B": "magvit_base"}


def tokenizer_cases(args: Namespace) -> Iterator[Case]:
    for frames in (16, 128):
        group = f"Tokenizer encode, {frames} frames of 112 pixels"
        for name, size in TOKENIZERS.items():
            yield Case(group, name, partial(models.tokenizer_encode, frames=frames, size=size))


def tokenizers_cases(args: Namespace) -> Iterator[Case]:
    """Ours and others', where their packages are installed, at one grid of 8 x 14 x 14 tokens and on clips of one length.

    The others code the first frame on its own and then four frames a token: 29 frames make 8 slots, 17 make 5.
    """
    lengths = {"Encoders, 8 x 14 x 14 tokens": 29, "Encoders, a clip of 16 or 17 frames of 112 pixels": 17}
    others: dict[str, tuple[str, Callable]] = {
        "Cosmos DV 4x8x8": ("diffusers", models.cosmos_encode),
        "magvit2-pytorch": ("magvit2_pytorch", models.magvit2_encode),
    }
    for group, frames in lengths.items():
        for name, size in TOKENIZERS.items():
            yield Case(group, f"{name}, 16 frames", partial(models.tokenizer_encode, frames=16, size=size))
        for name, (package, build) in others.items():
            if importlib.util.find_spec(package) is None:
                print(f"{name} is left out: {package} is not installed.", file=sys.stderr)
            else:
                yield Case(group, f"{name}, {frames} frames", partial(build, frames=frames))


def load_case(group: str, name: str, picture: tuple[int, int], clips: int, uint8: bool, workers: int = 0) -> Case:
    build = partial(data.load_clips, picture=picture, clips=clips, uint8=uint8, workers=workers)
    return Case(group, name, build, clips=clips, files=partial(data.video_file, picture))


def input_cases(args: Namespace) -> Iterator[Case]:
    for picture, clips in (((1280, 720), 6), ((340, 256), 24)):  # enough clips that starting workers counts little
        group = f"Input, 128 of 300 frames of {picture[0]} x {picture[1]}, a clip"
        bare, files = partial(data.decode_only, picture=picture, clips=clips), partial(data.video_file, picture)
        yield Case(group, "bare decoder", bare, clips=clips, files=files)
        yield load_case(group, "VideoClips, uint8", picture, clips, uint8=True)
        yield load_case(group, "VideoClips, float", picture, clips, uint8=False)
        yield load_case(group, "data loader, 1 worker, uint8", picture, clips, uint8=True, workers=1)
        yield load_case(group, "data loader, 2 workers, uint8", picture, clips, uint8=True, workers=2)
        yield load_case(group, "data loader, 2 workers, float", picture, clips, uint8=False, workers=2)
    group = "Input, 64 frames out of 9,000 of 340 x 256"
    for seek in (True, False):
        for share in (0.02, 0.5, 0.98):
            name = f"{'segment' if seek else 'decoded from the start'}, {share:.0%} of the way"
            build = partial(data.load_segment, share=share, seek=seek)
            yield Case(group, name, build, files=partial(data.long_video_file))


def path_cases(args: Namespace) -> Iterator[Case]:
    group = "The whole path of a clip, ViT-B, 128 frames"
    yield lvmae_step_case(group, "pre-training step", size="base", frames=128, attention="sdpa")
    yield load_case(group, "decode and crop, 720p", (1280, 720), clips=1, uint8=True)
    yield load_case(group, "decode and crop, 340 x 256", (340, 256), clips=1, uint8=True)
    yield Case(group, "halve for the tokenizer", partial(data.tokenizer_view))
    yield Case(group, "tokenize (0 with a cache)", partial(models.tokenizer_encode, frames=128))


def cache_cases(args: Namespace) -> Iterator[Case]:
    group = "An epoch of 64 demo clips of 128 frames"
    for name, source in (("on the fly", "fly"), ("cached", "cache"), ("making the cache", "make")):
        yield Case(group, name, partial(data.digits_epoch, source=source), files=partial(data.digits_folder))
    group = "A clip from its worker, 128 of 300 frames of 340 x 256, at 224 pixels"
    forms = {
        "normalised float32": "floats",
        "uint8": "bytes",
        "visible uint8 tubelets and cached targets": "visible",
        "a quarter of the uint8 tubelets, chosen by learned scores": "chosen",
    }
    for name, form in forms.items():
        build = partial(data.worker_item, picture=(340, 256), form=form)
        yield Case(group, name, build, files=partial(data.video_file, (340, 256)))


GROUPS: dict[str, Callable[[Namespace], Iterator[Case]]] = {
    "step": step_cases,
    "budget": budget_cases,
    "finetune": finetune_cases,
    "chosen": chosen_cases,
    "memory": memory_cases,
    "tokenizer": tokenizer_cases,
    "tokenizers": tokenizers_cases,
    "input": input_cases,
    "path": path_cases,
    "cache": cache_cases,
}
