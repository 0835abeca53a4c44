"""Estimate the memory and time of training on your hardware before you rent it.

    python scripts/estimate_cost.py pretraining --size base --batch_size 8 --precision bfloat16 --memory 24 --peak 165
    python scripts/estimate_cost.py finetuning --batch_size 8 --precision bfloat16 --checkpointing mlp --mixing
    python scripts/estimate_cost.py finetuning --checkpointing mlp --lora_rank 8 --frames 64
    python scripts/estimate_cost.py pretraining --frames 512 --tokens_of 128
    python scripts/estimate_cost.py finetuning --frames 512 --keep_ratio 0.0625
    python scripts/estimate_cost.py tokenizer --training
    python scripts/estimate_cost.py table                       # the table of model_cards/cost.md; a minute

Nothing is computed: `transformers_lvmae.cost` counts the real step on tensors without values. The printed peak is an upper bound. It
holds weights, gradients, AdamW's moments and activations at once, and half a GiB for the framework. Time is FLOPs / (0.35 x peak):
35 % of the vendor's peak is a fair guess for bfloat16 on a data-center GPU. The data loader must keep up, too.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from transformers_lvmae import FSQMagViTConfig, LVMAEConfig
from transformers_lvmae.command_line import CommandLine, run
from transformers_lvmae.cost import StepCost, classification_cost, pretraining_cost, tokenizer_cost


GIB = 2**30
OVERHEAD = GIB // 2  # context, kernels, allocator
SHARE = 0.35  # of a device's peak FLOP/s that training reaches


@dataclass(frozen=True)
class Machine:
    """Devices with `memory` GiB and a peak of `peak` TFLOP/s each."""

    name: str
    devices: int
    memory: float
    peak: float

    def seconds(self, cost: StepCost, slowdown: float = 1) -> float:
        return slowdown * cost.flops / (self.peak * 1e12 * SHARE)


# Dense bfloat16 peaks from the vendor's data sheets: RTX 4090 165, A100 312 TFLOP/s. float32 with TF32 runs at half of them.
MACHINES = (
    Machine("1 x 24 GB (RTX 4090)", 1, 24, 165),
    Machine("1 x 80 GB (A100)", 1, 80, 312),
    Machine("8 x 80 GB (A100)", 8, 80, 312),
    Machine("64 x 80 GB (A100)", 64, 80, 312),
)


def step_cost(args: argparse.Namespace, batch_size: int) -> StepCost:
    """Count the step that the command line describes, each one once."""
    return _step_cost(batch_size, **{name: value for name, value in vars(args).items() if name != "batch_size"})


@cache
def _step_cost(batch_size: int, **options: Any) -> StepCost:
    args = argparse.Namespace(**options)
    if args.task == "tokenizer":
        return tokenizer_cost(FSQMagViTConfig(num_frames=args.frames), batch_size, args.training)
    fields = {"image_size": args.image_size, "num_labels": args.labels, "token_keep_ratio": args.keep_ratio}
    config = LVMAEConfig.from_size(args.size, **fields, num_frames=args.tokens_of or args.frames)
    config = config.for_frames(args.frames)
    common = (config, batch_size, args.precision, args.attention, args.checkpointing)
    if args.task == "pretraining":
        budget = None if args.budget is None else int(args.budget * config.seq_length)
        return pretraining_cost(*common, decoded_tokens=budget)

    def add_lora(model: nn.Module) -> nn.Module:
        layers: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
        return get_peft_model(model, LoraConfig(r=args.lora_rank, **layers))

    adapt = add_lora if args.lora_rank else None
    return classification_cost(*common, training=args.task == "finetuning", mixing=args.mixing, adapt=adapt)


def largest_batch(args: argparse.Namespace, memory: float) -> int:
    """Clips per device that fit into `memory` GiB; 0 if not even one does."""
    # Beyond two clips, activations take more memory than gradients, and the peak grows by the same bytes with every clip.
    two, four = (step_cost(args, size).peak_bytes for size in (2, 4))
    return max(0, int(2 + 2 * (memory * GIB - OVERHEAD - two) // (four - two)))


def describe(args: argparse.Namespace) -> str:
    machine = Machine("yours", 1, args.memory, args.peak)
    cost = step_cost(args, args.batch_size)
    seconds = machine.seconds(cost)
    rows = [
        ("parameters (trainable)", f"{cost.parameters / 1e6:.1f} M ({cost.trainable_parameters / 1e6:.1f} M)"),
        ("FLOPs a step", f"{cost.flops / 1e12:,.2f} T"),
        ("weights, gradients, optimizer", f"{cost.state_bytes / GIB:.2f} GiB"),
        ("activations kept", f"{cost.saved_bytes / GIB:.2f} GiB"),
        ("temporaries and batch", f"{(cost.working_bytes + cost.input_bytes) / GIB:.2f} GiB"),
        ("peak", f"{(cost.peak_bytes + OVERHEAD) / GIB:.2f} of {machine.memory:g} GiB"),
        ("largest batch", str(largest_batch(args, machine.memory))),
        (f"seconds a step at {SHARE:.0%} of {machine.peak:g} TFLOP/s", f"{seconds:.3g}"),
        ("clips a second", f"{args.batch_size / seconds:,.1f}"),
        (f"hours for {args.clips:,} clips", f"{args.clips / args.batch_size * seconds / 3600:,.1f}"),
    ]
    return "\n".join(f"{name:<40} {value}" for name, value in rows)


TABLE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("tokenizer, training on 16 frames of 112 pixels, TF32",
     {"task": "tokenizer", "frames": 16, "training": True, "precision": "float32"}),
    ("pre-training, ViT-B", {"task": "pretraining"}),
    ("pre-training, ViT-B, MLP checkpointed", {"task": "pretraining", "checkpointing": "mlp"}),
    ("pre-training, ViT-L", {"task": "pretraining", "size": "large"}),
    ("pre-training, ViT-H", {"task": "pretraining", "size": "huge"}),
    ("fine-tuning, ViT-B", {"task": "finetuning"}),
    ("fine-tuning, ViT-B, MLP checkpointed", {"task": "finetuning", "checkpointing": "mlp"}),
    ("fine-tuning, ViT-B, layers checkpointed", {"task": "finetuning", "checkpointing": "layer"}),
    ("LoRA of rank 8, ViT-B, MLP checkpointed", {"task": "finetuning", "checkpointing": "mlp", "lora_rank": 8}),
    ("fine-tuning, ViT-L, layers checkpointed", {"task": "finetuning", "size": "large", "checkpointing": "layer"}),
    ("classifying, ViT-B", {"task": "classifying"}),
)  # fmt: skip


def machine_table(args: argparse.Namespace) -> str:
    """What fits and how fast, in Markdown: the largest batch of a device, and clips an hour on all devices."""
    names = [machine.name for machine in MACHINES]
    lines = [
        f"| {' | '.join(['128 frames of 224 pixels', 'TFLOP a clip', *names])} |",
        f"|{' --- |' * (len(names) + 2)}",
    ]
    for name, options in TABLE:
        row = argparse.Namespace(**{**vars(args), "precision": "bfloat16", **options})
        clip = step_cost(row, 1)
        slowdown = 1 if row.precision == "bfloat16" else 2
        cells = [f"{clip.flops / 1e12:.2f}"]
        for machine in MACHINES:
            batch = largest_batch(row, machine.memory)
            hourly = 3600 * machine.devices / machine.seconds(clip, slowdown)
            cells.append(f"{batch} clips, {hourly:,.0f} /h" if batch else "does not fit")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__)
    parser.add_argument("task", choices=["tokenizer", "pretraining", "finetuning", "classifying", "table"])
    parser.add_argument(
        "--size", default="base", choices=["small", "base", "large", "huge"], help="the ViT (default: base)"
    )
    parser.add_argument("--frames", type=int, within="[1, inf)", default=128, help="frames of a clip (default: 128)")
    parser.add_argument(
        "--image_size", type=int, within="[1, inf)", default=224, help="height and width in pixels (default: 224)"
    )
    parser.add_argument("--labels", type=int, within="[1, inf)", default=48, help="classes (default: 48)")
    parser.add_argument("--batch_size", type=int, within="[1, inf)", default=1, help="clips in a step (default: 1)")
    parser.add_argument(
        "--budget",
        type=float,
        within="(0, 1]",
        help="share of all tokens that the decoder predicts, 0 to 1 (default: the config's)",
    )
    parser.add_argument(
        "--keep_ratio",
        type=float,
        within="(0, 1]",
        default=1.0,
        help="share of the tokens that a classifier looks at, with learned scores (default: 1)",
    )
    parser.add_argument(
        "--tokens_of",
        type=int,
        within="[1, inf)",
        help="as many visible, decoded and kept tokens as a clip of this many frames has (default: of --frames)",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "bfloat16"],
        help="bfloat16 means autocast (default: float32)",
    )
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"], help="implementation (default: sdpa)")
    parser.add_argument(
        "--checkpointing",
        default="none",
        choices=["none", "mlp", "layer"],
        help="recompute nothing, the MLPs or whole layers in backward (default: none)",
    )
    parser.add_argument(
        "--lora_rank", type=int, within="[0, inf)", default=0, help="rank of LoRA; 0 trains all weights (default: 0)"
    )
    parser.add_argument("--mixing", action="store_true", help="fine-tune with MixUp or CutMix")
    parser.add_argument("--training", action="store_true", help="train the tokenizer; without it, encode clips")
    parser.add_argument("--memory", type=float, within="(0, inf)", default=24, help="GiB of the device (default: 24)")
    parser.add_argument(
        "--peak",
        type=float,
        within="(0, inf)",
        default=165,
        help="TFLOP/s of the device in this precision (default: 165)",
    )
    parser.add_argument(
        "--clips",
        type=int,
        within="[1, inf)",
        default=1_000_000,
        help="clips of the whole training, epochs x videos (default: 1000000)",
    )
    return parser


def main() -> None:
    args = parser().parse_args()
    print(machine_table(args) if args.task == "table" else describe(args))


if __name__ == "__main__":
    run(main)
