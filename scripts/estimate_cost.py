"""What training costs on your hardware, before you rent it: memory and time from closed forms (transformers_lvmae.cost).

    python scripts/estimate_cost.py pretraining --size base --batch_size 8 --precision bfloat16 --memory 24 --peak 165
    python scripts/estimate_cost.py finetuning --batch_size 8 --precision bfloat16 --checkpointing mlp --mixing
    python scripts/estimate_cost.py finetuning --checkpointing mlp --lora_rank 8 --frames 64
    python scripts/estimate_cost.py tokenizer --training
    python scripts/estimate_cost.py table                       # the table of model_cards/cost.md

Nothing is run. FLOPs and kept activations agree with what is counted to 2 % (tests/test_cost.py); peak memory adds weights, gradients
and AdamW's moments at once, and is an upper bound but for the framework's own half a gigabyte. Time is FLOPs / (peak x share): the
share is yours to know. 0.35 is a fair guess for bfloat16 on a data-centre GPU; the loader must keep up, too.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from transformers_lvmae import FSQMagViTConfig, LVMAEConfig
from transformers_lvmae.cost import StepCost, classification_cost, pretraining_cost, tokenizer_cost


GIB = 2**30
OVERHEAD = GIB // 2  # context, kernels, allocator


@dataclass(frozen=True)
class Machine:
    """Devices with `memory` GiB and `peak` TFLOP/s each, of which `share` is reached."""

    name: str
    devices: int
    memory: float
    peak: float
    share: float = 0.35

    def seconds(self, cost: StepCost, slowdown: float = 1) -> float:
        return slowdown * cost.flops / (self.peak * 1e12 * self.share)


# Dense bfloat16 peaks from the vendor's data sheets: RTX 4090 165, A100 312 TFLOP/s. float32 with TF32 runs at half of it.
MACHINES = (
    Machine("1 x 24 GB (RTX 4090)", 1, 24, 165),
    Machine("1 x 80 GB (A100)", 1, 80, 312),
    Machine("8 x 80 GB (A100)", 8, 80, 312),
    Machine("64 x 80 GB (A100)", 64, 80, 312),
)


def step_cost(task: str, args: argparse.Namespace, batch_size: int) -> StepCost:
    """The closed form that the command line asks for."""
    if task == "tokenizer":
        return tokenizer_cost(FSQMagViTConfig(num_frames=args.frames), batch_size, args.training)
    config = LVMAEConfig.from_size(
        args.size, num_frames=args.frames, image_size=args.image_size, num_labels=args.labels
    )
    options = {"precision": args.precision, "attention": args.attention, "checkpointing": args.checkpointing}
    if task == "pretraining":
        budget = None if args.budget is None else int(args.budget * config.seq_length)
        return pretraining_cost(config, batch_size, **options, decoded_tokens=budget)
    options |= {"training": task == "finetuning", "lora_rank": args.lora_rank, "mixing": args.mixing}
    return classification_cost(config, batch_size, **options)


def largest_batch(task: str, args: argparse.Namespace, memory: float, shards: int) -> int:
    """Clips a device that fit into `memory` GiB; 0 if not even one does."""
    one, two = (step_cost(task, args, size).peak_bytes(shards) for size in (1, 2))
    return max(0, int((memory * GIB - OVERHEAD - (2 * one - two)) // (two - one)))


def describe(task: str, args: argparse.Namespace, machine: Machine) -> str:
    shards = machine.devices if args.sharded else 1
    cost = step_cost(task, args, args.batch_size)
    clips = args.batch_size * machine.devices
    seconds = machine.seconds(cost)
    rows = [
        ("parameters (trainable)", f"{cost.parameters / 1e6:.1f} M ({cost.trainable_parameters / 1e6:.1f} M)"),
        ("FLOPs a step and device", f"{cost.flops / 1e12:,.2f} T"),
        ("weights, gradients, optimizer", f"{cost.state_bytes(shards) / GIB:.2f} GiB"),
        ("activations kept", f"{cost.saved_bytes / GIB:.2f} GiB"),
        ("temporaries and batch", f"{(cost.working_bytes + cost.input_bytes) / GIB:.2f} GiB"),
        ("peak", f"{(cost.peak_bytes(shards) + OVERHEAD) / GIB:.2f} of {machine.memory:g} GiB"),
        ("largest batch a device", str(largest_batch(task, args, machine.memory, shards))),
        (f"seconds a step at {machine.share:.0%} of {machine.peak:g} TFLOP/s", f"{seconds:.3g}"),
        (f"clips a second on {machine.devices} device(s)", f"{clips / seconds:,.1f}"),
        (f"hours for {args.clips:,} clips", f"{args.clips / clips * seconds / 3600:,.1f}"),
    ]
    return "\n".join(f"{name:<40} {value}" for name, value in rows)


TABLE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "tokenizer, training on 16 frames of 112 pixels, TF32",
        "tokenizer",
        {"frames": 16, "training": True, "precision": "float32"},
    ),
    ("pre-training, ViT-B", "pretraining", {}),
    ("pre-training, ViT-B, MLP checkpointed", "pretraining", {"checkpointing": "mlp"}),
    ("pre-training, ViT-L", "pretraining", {"size": "large"}),
    ("pre-training, ViT-H", "pretraining", {"size": "huge"}),
    ("fine-tuning, ViT-B", "finetuning", {}),
    ("fine-tuning, ViT-B, MLP checkpointed", "finetuning", {"checkpointing": "mlp"}),
    ("fine-tuning, ViT-B, layers checkpointed", "finetuning", {"checkpointing": "layer"}),
    ("LoRA of rank 8, ViT-B, MLP checkpointed", "finetuning", {"checkpointing": "mlp", "lora_rank": 8}),
    ("fine-tuning, ViT-L, layers checkpointed", "finetuning", {"size": "large", "checkpointing": "layer"}),
    ("classifying, ViT-B", "classifying", {}),
)


def machine_table(args: argparse.Namespace) -> str:
    """What fits and how fast, in Markdown: largest batch a device, clips an hour on all devices at that batch."""
    names = [machine.name for machine in MACHINES]
    lines = [
        f"| {' | '.join(['128 frames of 224 pixels', 'TFLOP a clip', *names])} |",
        f"|{' --- |' * (len(names) + 2)}",
    ]
    for name, task, options in TABLE:
        row = argparse.Namespace(**{**vars(args), "precision": "bfloat16", **options})
        cells = [f"{step_cost(task, row, 1).flops / 1e12:.2f}"]
        for machine in MACHINES:
            batch = largest_batch(task, row, machine.memory, shards=1)
            slowdown = 1 if row.precision == "bfloat16" else 2
            hourly = 3600 * machine.devices / machine.seconds(step_cost(task, row, 1), slowdown)
            cells.append(f"{batch} clips, {hourly:,.0f} /h" if batch else "does not fit")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["tokenizer", "pretraining", "finetuning", "classifying", "table"])
    parser.add_argument("--size", default="base", choices=["small", "base", "large", "huge"])
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--labels", type=int, default=48, help="classes")
    parser.add_argument("--batch_size", type=int, default=1, help="clips a device and step")
    parser.add_argument(
        "--budget", type=float, help="share of the tokens that the decoder reconstructs; default the config's"
    )
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="bfloat16 is autocast")
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--checkpointing", default="none", choices=["none", "mlp", "layer"])
    parser.add_argument("--lora_rank", type=int, default=0, help="0 = all weights are trained")
    parser.add_argument("--mixing", action="store_true", help="fine-tune with MixUp or CutMix")
    parser.add_argument("--training", action="store_true", help="train the tokenizer; without it, encode clips")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--sharded", action="store_true", help="FSDP or ZeRO-3: states are spread over the devices")
    parser.add_argument("--memory", type=float, default=24, help="GiB a device")
    parser.add_argument("--peak", type=float, default=165, help="TFLOP/s a device in this precision")
    parser.add_argument("--share", type=float, default=0.35, help="share of the peak that is reached")
    parser.add_argument("--clips", type=int, default=1_000_000, help="clips of the whole training, epochs x videos")
    return parser


def main() -> None:
    args = parser().parse_args()
    if args.task == "table":
        print(machine_table(args))
        return
    machine = Machine("yours", args.devices, args.memory, args.peak, args.share)
    print(describe(args.task, args, machine))


if __name__ == "__main__":
    main()
