"""The cases of a GPU: LVMAE beside transformers' VideoMAE and V-JEPA 2, in bfloat16 autocast, sdpa attention.

The most important groups come first, because time may run out. The first case of a group is the one that the others are compared with.
"""

from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from typing import Any

import model_work as models
from cases import Case


# Clips of a step: enough for a large GPU to have work.
BATCHES = {"pretraining": 8, "fine-tuning": 2, "inference": 4, "tokenizer": 4}


def gpu_cases(args: Namespace) -> list[Case]:
    """All cases of `args.sizes` at `args.frames` frames."""
    by_size = [
        case
        for size in sorted(args.sizes, key=lambda size: size != "base")  # ViT-B first
        for cases in (pretraining_cases, classifier_cases)
        for case in cases(size, args.frames)
    ]
    return [*by_size, *tokenizer_cases(args.frames)]


def pretraining_cases(size: str, frames: int) -> Iterator[Case]:
    batch = BATCHES["pretraining"]
    group = f"Pre-training step, ViT-{size[0].upper()}, {frames} frames, {batch} clips"
    fields: dict[str, Any] = {"size": size, "frames": frames, "attention": "sdpa", "batch": batch}
    yield Case(group, "VideoMAE", partial(models.videomae_step, **fields), backward=True, clips=batch)
    variants: dict[str, dict[str, Any]] = {
        "LVMAE": {},
        "LVMAE, nothing recomputed": {"recompute": False},
        "LVMAE, compiled": {"compiled": True},
    }
    for name, variant in variants.items() if size == "base" else [("LVMAE", variants["LVMAE"])]:
        yield Case(group, name, partial(models.lvmae_step, **fields, **variant), backward=True, clips=batch)


def classifier_cases(size: str, frames: int) -> Iterator[Case]:
    for kind, training in (("fine-tuning", True), ("inference", False)):
        batch = BATCHES[kind]
        group = f"{kind.capitalize()}{' step' * training}, ViT-{size[0].upper()}, {frames} frames, {batch} clips"
        fields: dict[str, Any] = {"size": size, "frames": frames, "layers": None, "training": training, "batch": batch}
        builds = {
            "VideoMAE": partial(models.videomae_classifier, **fields),
            "V-JEPA 2": partial(models.vjepa2_classifier, **fields),
            "LVMAE": partial(models.lvmae_classifier, **fields),
        }
        builds["LVMAE, a quarter of the tokens"] = partial(models.lvmae_classifier, **fields, keep_ratio=0.25)
        if training and size == "base":
            builds["LVMAE, MLP checkpointed"] = partial(models.lvmae_classifier, **fields, checkpointing="mlp")
        for name, build in builds.items():
            yield Case(group, name, build, backward=training, clips=batch)


def tokenizer_cases(frames: int) -> Iterator[Case]:
    batch = BATCHES["tokenizer"]
    group = f"Tokenizer encode, {frames} frames of 112 pixels, {batch} clips"
    for name, size in {"default": "base", "MAGVIT-B": "magvit_base"}.items():
        yield Case(group, name, partial(models.tokenizer_encode, frames=frames, size=size, batch=batch), clips=batch)
    group = f"Tokenizer training step, 16 frames of 112 pixels, {2 * batch} clips"
    build = partial(models.tokenizer_step, batch=2 * batch)
    yield Case(group, "default", build, backward=True, clips=2 * batch)
