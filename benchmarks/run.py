"""Time, memory and FLOPs of LVMAE beside what transformers has, in one interleaved run.

    python benchmarks/run.py --cases step --sizes base --frames 128 --repeats 3
    python benchmarks/run.py --cases budget finetune tokenizer tokenizers input path cache

Every case runs in a fresh process, on one thread, round-robin: what else the machine does meets all cases alike. One run of each
measures its memory, and --repeats more its time: only an allocator that gives large blocks back at once shows what is in use, and
it makes every large tensor anew out of empty pages, which takes CPU time of its own. CPU seconds are the figure to compare; wall clock
is the machine's mood. One JSON line a run goes to OUTPUT/results.jsonl, medians with ratios to the first case of each group to
OUTPUT/tables.md, and the decoder budgets to OUTPUT/decoder_budgets.png.

Fair by construction: float32, batch 1, one thread, real inputs built before the clock starts, targets given to LVMAE (cached) and
pixels to the others (which they make in the step). Weights are random: cost does not depend on them. FLOPs and saved bytes are
counted in a second step, after the one whose memory is measured; --no_count saves that time. Those of LVMAE's pre-training
steps are the closed form's (transformers_lvmae.cost), which the tests hold to the counter. Other projects' tokenizers are run where
their packages (diffusers, magvit2-pytorch) are installed, and left out with a message where they are not.
"""

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch


GROUPS = ("step", "budget", "finetune", "memory", "tokenizer", "tokenizers", "input", "path", "cache")
VARIANTS: dict[str, dict[str, Any]] = {
    "LVMAE": {},
    "LVMAE, nothing rebuilt": {"recompute_activations": False},
    "LVMAE, MLP checkpointed": {"checkpointing": {"mlp_only": True}},
    "LVMAE, layers checkpointed": {"checkpointing": {}},
}
FIELDS: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
DECODERS: dict[str, dict[str, Any]] = {
    "small": {"decoder_hidden_size": 192, "decoder_num_attention_heads": 3, "decoder_intermediate_size": 768},
    "base": {"decoder_hidden_size": 384, "decoder_num_attention_heads": 6, "decoder_intermediate_size": 1536},
}
LABELS: dict[str, Any] = {"num_labels": 48}  # Diving48's
Case = dict[str, Any]
Work = Callable[[], Any]


# What is run, each as a function that builds everything and returns (model, one piece of work)


def lvmae_step(case: Case) -> tuple[Any, Work]:
    """A pre-training step with cached codes; `budget` is the share of all tokens that is decoded."""
    from transformers_lvmae import LVMAEConfig, LVMAEForPreTraining
    from transformers_lvmae.models.masking import random_tube_mask, topk_mask

    budget = case.get("budget", 0.15)
    fields = {
        "recompute_activations": case.get("recompute_activations", True),
        "attn_implementation": case["attention"],
    }
    config = LVMAEConfig.from_size(case["size"], num_frames=case["frames"], **fields)
    model = LVMAEForPreTraining(config).train()
    if case.get("checkpointing") is not None:
        model.activation_checkpointing_enable(case["checkpointing"])
    masked = random_tube_mask(1, config.grid_size, config.mask_ratio)
    decoded = masked if budget == 1 else topk_mask(torch.rand(1, config.seq_length), int(budget * config.seq_length))
    codes = torch.rand(1, config.seq_length, config.target_size) * 2 - 1
    clip = torch.randn(1, config.num_frames, 3, 224, 224)
    return model, lambda: model(clip, masked, decoded, codes).loss


def videomae_step(case: Case) -> tuple[Any, Work]:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    from transformers_lvmae.models.masking import random_tube_mask

    sizes = {**FIELDS[case["size"]], **DECODERS[case["size"]]}
    config = VideoMAEConfig(num_frames=case["frames"], decoder_num_hidden_layers=4, **sizes)
    config._attn_implementation = case["attention"]  # before building: VideoMAE's decoder has a config of its own
    model = VideoMAEForPreTraining(config).train()
    masked = random_tube_mask(1, (case["frames"] // 2, 14, 14), 0.9)
    clip = torch.randn(1, case["frames"], 3, 224, 224)
    return model, lambda: model(clip, bool_masked_pos=masked).loss


def videomae_v2_step(case: Case) -> tuple[Any, Work]:
    """VideoMAE V2's dual masking in the layers of transformers' VideoMAE: its decoder gets the visible tokens and half of all tokens.

    As in its code every tubelet is embedded, and the encoder's are picked out after. Targets are made for the decoded tokens alone.
    """
    from einops import rearrange

    from transformers_lvmae.models.masking import random_tube_mask, topk_mask

    model, _ = videomae_step(case)
    tokens = model.videomae.embeddings.num_patches
    masked = random_tube_mask(1, (case["frames"] // 2, 14, 14), 0.9)
    decoded = topk_mask(torch.rand(1, tokens), tokens // 2)
    clip = torch.randn(1, case["frames"], 3, 224, 224)
    positions = model.position_embeddings

    def work() -> Any:
        encoded = model.encoder_to_decoder(model.videomae(clip, bool_masked_pos=masked).last_hidden_state)
        queries = model.mask_token + positions[decoded][None]
        logits = model.decoder(torch.cat([encoded + positions[~masked][None], queries], dim=1), tokens // 2).logits
        pixels = rearrange(clip, "b (t p) c (h q) (w r) -> b (t h w) (p q r) c", p=2, q=16, r=16)[decoded][None]
        pixels = (pixels - pixels.mean(dim=2, keepdim=True)) / (pixels.std(dim=2, keepdim=True) + 1e-6)
        return torch.nn.functional.mse_loss(logits, pixels.flatten(2))

    return model, work


def lvmae_classifier(case: Case) -> tuple[Any, Work]:
    from transformers_lvmae import LVMAEConfig, LVMAEForVideoClassification

    config = LVMAEConfig.from_size(
        "base",
        num_frames=case["frames"],
        num_hidden_layers=case["layers"],
        num_labels=48,
        recompute_activations=case.get("recompute_activations", True),
    )
    model = LVMAEForVideoClassification(config).train(case["training"])
    if case.get("checkpointing") is not None:
        model.activation_checkpointing_enable(case["checkpointing"])
    return model, classifier_work(model, case)


def lvmae_fine_tuning(case: Case) -> tuple[Any, Work]:
    """A whole fine-tuning step, AdamW's included; its moments are there before, as in every step but the first."""
    from peft import LoraConfig, get_peft_model

    from transformers_lvmae import LVMAEConfig, LVMAEForVideoClassification
    from transformers_lvmae.training.mixing import ClipMixing

    config = LVMAEConfig(num_frames=case["frames"], problem_type="single_label_classification", **LABELS)
    model: Any = LVMAEForVideoClassification(config).train()
    if case["checkpointing"] != "none":
        model.activation_checkpointing_enable({"mlp_only": case["checkpointing"] == "mlp"})
    if case["lora_rank"]:
        layers: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
        model = get_peft_model(model, LoraConfig(r=case["lora_rank"], **layers))
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    clips, labels = torch.randn(case["batch"], case["frames"], 3, 224, 224), torch.eye(48)[: case["batch"]]
    mixing = ClipMixing(0.8, 1.0) if case["mixing"] else None

    def work() -> Any:
        with torch.enable_grad():
            mixed, shares = (clips, torch.eye(len(clips))) if mixing is None else mixing(clips)
            model(pixel_values_videos=mixed, labels=shares @ labels).loss.backward()
        optimizer.step()

    return model, work


def videomae_classifier(case: Case) -> tuple[Any, Work]:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    config = VideoMAEConfig(num_frames=case["frames"], num_hidden_layers=case["layers"], **LABELS)
    model = VideoMAEForVideoClassification(config).train(case["training"])
    return model, classifier_work(model, case)


def vjepa2_classifier(case: Case) -> tuple[Any, Work]:
    """V-JEPA 2 in ViT-B's shape, with its own attentive pooling."""
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification

    config = VJEPA2Config(
        frames_per_clip=case["frames"],
        crop_size=224,
        hidden_size=768,
        num_attention_heads=12,
        num_hidden_layers=case["layers"],
        mlp_ratio=4,
        **LABELS,
    )
    model = VJEPA2ForVideoClassification(config).train(case["training"])
    return model, classifier_work(model, case)


def classifier_work(model: Any, case: Case) -> Work:
    clip, labels = torch.randn(1, case["frames"], 3, 224, 224), torch.zeros(1, dtype=torch.long)
    if case["training"]:
        return lambda: model(clip, labels=labels).loss
    return lambda: model(clip).logits


def tokenizer_encode(case: Case) -> tuple[Any, Work]:
    from transformers_lvmae import FSQMagViTConfig, FSQMagViTModel

    model = FSQMagViTModel(FSQMagViTConfig.from_size(case.get("size", "base"))).eval()
    clip = torch.rand(1, case["frames"], 3, *model.config.frame_size)
    return model, lambda: model.encode(clip).codes


def cosmos_encode(case: Case) -> tuple[Any, Work]:
    """The encoder of Cosmos DV 4x8x8 in diffusers' code: that of its continuous tokenizer at 4 frames a slot, Haar patches of 4
    pixels, 128 x (1, 2, 4, 4) channels, without the discrete one's last linear and rounding."""
    from diffusers import AutoencoderKLCosmos

    model = AutoencoderKLCosmos(temporal_compression_ratio=4).encoder.eval()
    clip = torch.randn(1, 3, case["frames"], 112, 112)
    return model, lambda: model(clip)


def magvit2_encode(case: Case) -> tuple[Any, Work]:
    """magvit2-pytorch with the layers of its README, and FSQ."""
    from magvit2_pytorch import VideoTokenizer

    twice = ("consecutive_residual", 2)
    layers = [
        "residual",
        "compress_space",
        twice,
        "compress_space",
        twice,
        "linear_attend_space",
        "compress_space",
        twice,
    ]
    layers += ["attend_space", "compress_time", twice, "compress_time", twice, "attend_time"]
    sizes = {"image_size": 112, "init_dim": 64, "max_dim": 512, "layers": tuple(layers)}
    untrained = {"use_gan": False, "perceptual_loss_weight": 0.0}
    model = VideoTokenizer(**sizes, **untrained, use_fsq=True, fsq_levels=[8, 8, 8, 5, 5, 5]).eval()
    clip = torch.rand(1, 3, case["frames"], 112, 112)
    return model, lambda: model.encode(clip, quantize=True)


def video_file(case: Case) -> str:
    """Moving noise over a gradient, 10 s at 30 frames a second, in the benchmark's scratch folder."""
    import numpy as np

    from transformers_lvmae.models.video_io import write_video

    width, height = case["picture"]
    path = Path(tempfile.gettempdir()) / f"lvmae_benchmark_{width}x{height}.mp4"
    if not path.exists():
        generator = np.random.default_rng(0)
        texture = generator.integers(0, 60, (height, width + 300, 3), dtype=np.uint8)
        shade = np.linspace(0, 190, height, dtype=np.uint8)[:, None, None]
        write_video(path, np.stack([texture[:, start : start + width] + shade for start in range(300)]), fps=30, crf=23)
    return str(path)


def long_video_file() -> str:
    """The 340 x 256 film 30 times over: 5 minutes, a keyframe at least every 250 frames."""
    import av

    path = Path(tempfile.gettempdir()) / "lvmae_benchmark_long.mp4"
    if not path.exists():
        with av.open(video_file({"picture": (340, 256)})) as short, av.open(str(path), "w") as container:
            source = short.streams.video[0]
            stream = container.add_stream_from_template(source)
            packets = [packet for packet in short.demux(source) if packet.size]
            length = 300 * min(packet.duration for packet in packets if packet.duration)
            for copy in range(30):
                short.seek(0)
                for packet in (packet for packet in short.demux(source) if packet.size):
                    packet.pts, packet.dts = packet.pts + copy * length, packet.dts + copy * length
                    packet.stream = stream
                    container.mux(packet)
    return str(path)


def decode_only(case: Case) -> tuple[None, Work]:
    """PyAV's frames, each wanted one made smaller at once on uint8, antialiased: the codec and the pixels, nothing else."""
    import av
    import numpy as np
    from torchvision.transforms.v2.functional import resize

    path = video_file(case)

    def work() -> None:
        for _ in range(case["clips"]):
            wanted = set((np.arange(128) * 300 // 128).tolist())
            frames = []
            with av.open(path) as container:
                container.streams.video[0].codec_context.thread_count = 1
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                        frames.append(resize(pixels, [224], antialias=True))
            torch.stack(frames)

    return None, work


def load_clips(case: Case) -> tuple[None, Work]:
    """What training reads: decode, sample, resize, crop; float (normalised) or uint8 pixels, in this process or in workers."""
    from torch.utils.data import DataLoader

    from transformers_lvmae import LVMAEConfig
    from transformers_lvmae.data import VideoClips, processor_for

    class Uint8Clips(VideoClips):
        as_bytes = True

    rows: Any = [{"video": video_file(case)}] * case["clips"]
    clips = (Uint8Clips if case["uint8"] else VideoClips)(rows, processor_for(LVMAEConfig()), 128)
    loader = DataLoader(clips, batch_size=1, num_workers=case.get("workers", 0))

    def work() -> None:
        for _ in loader:
            pass

    return None, work


def load_segments(case: Case) -> tuple[None, Work]:
    """64 consecutive frames, from `share` of the way into 5 minutes of video: as a segment, or by decoding up to there."""
    import av

    from transformers_lvmae.models.video_io import decode_video

    path = long_video_file()
    first = int(case["share"] * 8900)

    def seek() -> None:
        decode_video(path, lambda metadata: range(64), start=first / 30, end=first / 30 + 70 / 30)

    def read_on() -> None:
        with av.open(path) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if first <= number < first + 64:
                    frame.to_ndarray(format="rgb24")
                elif number == first + 64:
                    break

    return None, seek if case["seek"] else read_on


def tokenizer_view(case: Case) -> tuple[None, Work]:
    """Clips as the tokenizer sees them: half the size."""
    clip = torch.rand(128, 3, 224, 224)
    return None, lambda: torch.nn.functional.interpolate(clip, size=112, mode="bilinear", antialias=True)


def demo_data() -> Path:
    """64 digits clips of 128 frames, in the benchmark's scratch folder."""
    path = Path(tempfile.gettempdir()) / "lvmae_benchmark_digits"
    if not (path / "test").exists():
        sizes = ["--train", "64", "--validation", "8", "--test", "8"]
        command = [
            sys.executable,
            str(Path(__file__).with_name("make_digits.py")),
            str(path),
            "--task",
            "motion",
            *sizes,
        ]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return path


def quickstart_models() -> tuple[Any, Any]:
    """Pre-training model and tokenizer of the sizes of scripts/runs/quickstart.sh."""
    from transformers_lvmae import FSQMagViTConfig, FSQMagViTModel, LVMAEConfig, LVMAEForPreTraining

    decoder: Case = {"decoder_hidden_size": 64, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4}
    encoder: Case = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    geometry: Case = {"image_size": 32, "patch_size": 4, "tubelet_size": 4, "decoder_intermediate_size": 256}
    convolutions: Case = {"base_channels": 32, "num_res_blocks": 1, "channel_multipliers": (1, 2), "norm_num_groups": 8}
    convolutions |= {"temporal_downsample": (True,), "stem_patch_size": (2, 2, 2)}
    model = LVMAEForPreTraining(LVMAEConfig(**geometry, **encoder, **decoder)).train()
    return model, FSQMagViTModel(FSQMagViTConfig(image_size=32, **convolutions))


def cache_of(rows: Any, config: Any, tokenizer: Any, folder: str) -> Any:
    """The target cache of fixed clips."""
    from transformers_lvmae.data import processor_for
    from transformers_lvmae.targets.cache import TargetCache
    from transformers_lvmae.targets.cache_writing import (
        ByteClips,
        TargetMaker,
        begin_cache,
        make_manifest,
        write_targets,
    )

    processor = processor_for(config)
    clips, maker = ByteClips(rows, processor, config.num_frames), TargetMaker(processor, config.grid_size, tokenizer)
    manifest = make_manifest(clips, maker)
    begin_cache(Path(folder), manifest)
    write_targets(Path(folder), clips, maker, manifest, batch_size=8)
    return TargetCache(folder)


def demo_epoch(case: Case) -> tuple[None, Work]:
    """Every demo clip once, in batches of 8: read, targets (`source`), forward and backward; or the making of a cache."""
    from torch.utils.data import DataLoader

    from transformers_lvmae import LVMAEPreTrainer, LVMAEPreTrainingArguments
    from transformers_lvmae.data import load_video_dataset, processor_for
    from transformers_lvmae.targets.cache import clips_to_train_on

    model, tokenizer = quickstart_models()
    rows, folder = load_video_dataset(demo_data())["train"], tempfile.mkdtemp()
    if case["source"] == "make":
        return None, lambda: cache_of(rows, model.config, tokenizer, folder)
    cache = cache_of(rows, model.config, tokenizer, folder) if case["source"] == "cache" else None
    processor = processor_for(model.config)
    clips = clips_to_train_on(rows, processor, model.config, cache, training=True)
    trainer = LVMAEPreTrainer(
        model,
        LVMAEPreTrainingArguments(folder, report_to="none", use_cpu=True),
        processing_class=processor,
        video_tokenizer=None if cache else tokenizer,
    )

    def work() -> None:
        with torch.enable_grad():
            for batch in DataLoader(clips, batch_size=8, collate_fn=trainer.data_collator):
                model(**trainer.add_targets(batch)).loss.backward()

    return None, work


def worker_item(case: Case) -> tuple[None, Work]:
    """What a worker makes of a 340 x 256 video for ViT-B at 128 frames, and sends."""
    from datasets import Dataset, Video

    from transformers_lvmae import FSQMagViTConfig, FSQMagViTModel, LVMAEConfig
    from transformers_lvmae.data import VideoClips, processor_for
    from transformers_lvmae.targets.cache import clips_to_train_on
    from transformers_lvmae.training.pretraining import collate_masked_clips

    config = LVMAEConfig()
    rows = Dataset.from_dict({"video": [video_file(case)]}).cast_column("video", Video(decode=False))
    cache = None
    if case["form"] == "visible":
        tokenizer = FSQMagViTModel(FSQMagViTConfig.from_size("tiny"))
        cache = cache_of(rows, config, tokenizer, tempfile.mkdtemp())
    clips: VideoClips = clips_to_train_on(rows, processor_for(config), config, cache)
    if case["form"] == "floats":
        clips = VideoClips(rows, processor_for(config), config.num_frames)
    return None, lambda: collate_masked_clips([clips[0]])


# Which cases each group holds; the first one is what the others are compared with


def lvmae_step_case(**fields: Any) -> Case:
    """A pre-training step of LVMAE with its FLOPs and saved bytes."""
    from transformers_lvmae import LVMAEConfig
    from transformers_lvmae.cost import pretraining_cost, visible_tokens

    rebuild = fields.get("recompute_activations", True)
    config = LVMAEConfig.from_size(fields["size"], num_frames=fields["frames"], recompute_activations=rebuild)
    hidden = config.seq_length - visible_tokens(config, config.mask_ratio)
    budget = fields.get("budget", 0.15)
    checkpoint_kwargs = fields.get("checkpointing")
    cost = pretraining_cost(
        config,
        attention=fields["attention"],
        checkpointing="none" if checkpoint_kwargs is None else "mlp" if "mlp_only" in checkpoint_kwargs else "layer",
        decoded_tokens=hidden if budget == 1 else int(budget * config.seq_length),
    )
    return {**fields, "build": "lvmae_step", "backward": True, "flops": cost.flops, "saved": cost.saved_bytes}


def videomae_closed_form(attention: str) -> dict[str, int]:
    """FLOPs and saved bytes of VideoMAE-B at 128 frames: LVMAE's layers, all hidden tokens, and every tubelet embedded."""
    from transformers_lvmae import LVMAEConfig
    from transformers_lvmae.cost import TransformerLayers, pretraining_cost, visible_tokens

    config = LVMAEConfig(target_type="pixels", recompute_activations=False)
    tokens, visible = config.seq_length, visible_tokens(config, config.mask_ratio)
    hidden = tokens - visible
    cost = pretraining_cost(config, attention=attention, decoded_tokens=hidden)  # type: ignore[arg-type]
    # VideoMAE's last layer computes what comes out at visible positions, too.
    whole = TransformerLayers(
        1, tokens, config.decoder_hidden_size, config.decoder_intermediate_size, 6, outputs=tokens
    )
    ours = replace(whole, outputs=hidden)
    kept = [layers.saved_bytes(4, attention, "none", rebuild=False) for layers in (whole, ours)]  # type: ignore[arg-type]
    flops = cost.flops + whole.flops("none") - ours.flops("none") + 4 * hidden * config.target_size * config.hidden_size
    return {"flops": flops, "saved": cost.saved_bytes + kept[0] - kept[1] + 4 * visible * config.decoder_hidden_size}


def step_cases(args: argparse.Namespace) -> Iterator[Case]:
    for size in args.sizes:
        for attention in args.attention:
            for frames in args.frames:
                group = f"Pre-training step, ViT-{size[0].upper()}, {frames} frames, {attention}"
                common = {"group": group, "size": size, "attention": attention, "frames": frames}
                if size == "base" and attention == "eager" and frames == 128:
                    yield {
                        "name": "VideoMAE (not run: 24 GB; closed form)",
                        **common,
                        **videomae_closed_form(attention),
                    }
                else:
                    yield {"name": "VideoMAE", "build": "videomae_step", "backward": True, **common}
                yield {"name": "VideoMAE V2's 50 % decoder", "build": "videomae_v2_step", "backward": True, **common}
                for name, fields in VARIANTS.items():
                    yield lvmae_step_case(name=name, **common, **fields)


def budget_cases(args: argparse.Namespace) -> Iterator[Case]:
    common = {"group": "Decoder budget, ViT-B, 128 frames", "size": "base", "attention": "sdpa", "frames": 128}
    for budget in (1, 0.5, 0.25, 0.15, 0.1, 0.05):
        name = "all hidden tokens" if budget == 1 else f"{budget:.0%} of the tokens"
        yield lvmae_step_case(name=name, budget=budget, **common)


def finetune_cases(args: argparse.Namespace) -> Iterator[Case]:
    for training in (False, True):
        for frames in args.finetune_frames:
            kind = "Fine-tuning step" if training else "Forward"
            depth = "" if args.layers == 12 else f" with {args.layers} of 12 layers"
            group = f"{kind}, ViT-B{depth}, {frames} frames, sdpa"
            common = {
                "group": group,
                "frames": frames,
                "training": training,
                "backward": training,
                "layers": args.layers,
            }
            yield {"name": "VideoMAE", "build": "videomae_classifier", **common}
            yield {"name": "V-JEPA 2", "build": "vjepa2_classifier", **common}
            for name, fields in VARIANTS.items() if training else [("LVMAE", {})]:
                yield {"name": name, "build": "lvmae_classifier", **common, **fields}


def memory_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Measured and computed peaks of whole fine-tuning steps, above weights, AdamW's moments and the batch."""
    from transformers_lvmae import LVMAEConfig
    from transformers_lvmae.cost import classification_cost

    kinds: dict[str, dict[str, Any]] = {
        "all weights": {},
        "all weights, MLP checkpointed": {"checkpointing": "mlp"},
        "LoRA of rank 8": {"lora_rank": 8},
        "LoRA of rank 8, MLP checkpointed": {"lora_rank": 8, "checkpointing": "mlp"},
        "all weights, MLP checkpointed, 2 mixed clips": {"checkpointing": "mlp", "batch": 2, "mixing": True},
    }
    for frames in args.memory_frames:
        group = f"Memory of a fine-tuning step, ViT-B, {frames} frames, float32"
        for name, fields in kinds.items():
            case = {"frames": frames, "batch": 1, "checkpointing": "none", "lora_rank": 0, "mixing": False, **fields}
            options = {"checkpointing": case["checkpointing"], "lora_rank": case["lora_rank"], "mixing": case["mixing"]}
            cost = classification_cost(LVMAEConfig(num_frames=frames, **LABELS), case["batch"], **options)
            computed = cost.step_bytes + (cost.input_bytes // 2 if case["mixing"] else 0)  # one batch is there before
            known = {"computed": computed, "saved": cost.saved_bytes, "flops": cost.flops}
            yield {"group": group, "name": name, "build": "lvmae_fine_tuning", **case, **known}


def tokenizer_cases(args: argparse.Namespace) -> Iterator[Case]:
    for frames in (16, 128):
        for name, size in {"default": "base", "MAGVIT-B": "magvit_base"}.items():
            group = f"Tokenizer encode, {frames} frames of 112 pixels"
            yield {"group": group, "name": name, "build": "tokenizer_encode", "frames": frames, "size": size}


def tokenizers_cases(args: argparse.Namespace) -> Iterator[Case]:
    """Ours and others', where their packages are installed, at one grid of 8 x 14 x 14 tokens and on clips of one length.

    The others code the first frame on its own and four frames a token after it: 29 frames make 8 slots, 17 make 5.
    """
    others = {
        "Cosmos DV 4x8x8": ("cosmos_encode", "diffusers"),
        "magvit2-pytorch": ("magvit2_encode", "magvit2_pytorch"),
    }
    for group, frames in {
        "Encoders, 8 x 14 x 14 tokens": 29,
        "Encoders, a clip of 16 or 17 frames of 112 pixels": 17,
    }.items():
        for name, size in {"default": "base", "MAGVIT-B": "magvit_base"}.items():
            yield {
                "group": group,
                "name": f"{name}, 16 frames",
                "build": "tokenizer_encode",
                "frames": 16,
                "size": size,
            }
        for name, (build, package) in others.items():
            if importlib.util.find_spec(package) is None:
                print(f"{name} is left out: {package} is not installed.", file=sys.stderr)
            else:
                yield {"group": group, "name": f"{name}, {frames} frames", "build": build, "frames": frames}


def input_cases(args: argparse.Namespace) -> Iterator[Case]:
    for picture, clips in (((1280, 720), 6), ((340, 256), 24)):  # enough for the workers' start to count little
        group = f"Input, 128 of 300 frames of {picture[0]} x {picture[1]}, a clip"
        common = {"group": group, "picture": picture, "clips": clips, "build": "load_clips"}
        yield {**common, "name": "bare decoder", "build": "decode_only"}
        yield {**common, "name": "VideoClips, uint8", "uint8": True}
        yield {**common, "name": "VideoClips, float", "uint8": False}
        yield {**common, "name": "data loader, 1 worker, uint8", "workers": 1, "uint8": True}
        yield {**common, "name": "data loader, 2 workers, uint8", "workers": 2, "uint8": True}
        yield {**common, "name": "data loader, 2 workers, float", "workers": 2, "uint8": False}
    group = "Input, 64 frames out of 9,000 of 340 x 256"
    for seek in (True, False):
        for share in (0.02, 0.5, 0.98):
            name = f"{'segment' if seek else 'decoded from the start'}, {share:.0%} of the way"
            yield {"group": group, "name": name, "build": "load_segments", "seek": seek, "share": share}


def path_cases(args: argparse.Namespace) -> Iterator[Case]:
    group = "The whole path of a clip, ViT-B, 128 frames"
    common = {"group": group, "build": "load_clips", "clips": 1, "uint8": True}
    yield lvmae_step_case(group=group, name="pre-training step", size="base", attention="sdpa", frames=128)
    yield {**common, "name": "decode and crop, 720p", "picture": (1280, 720)}
    yield {**common, "name": "decode and crop, 340 x 256", "picture": (340, 256)}
    yield {"group": group, "name": "halve for the tokenizer", "build": "tokenizer_view"}
    yield {"group": group, "name": "tokenize (0 with a cache)", "build": "tokenizer_encode", "frames": 128}


def cache_cases(args: argparse.Namespace) -> Iterator[Case]:
    group = "An epoch of 64 demo clips of 128 frames"
    for name, source in (("on the fly", "fly"), ("cached", "cache"), ("making the cache", "make")):
        yield {"group": group, "name": name, "build": "demo_epoch", "source": source}
    group = "A clip from its worker, 128 of 300 frames of 340 x 256, at 224 pixels"
    for name, form in (
        ("normalised float32", "floats"),
        ("uint8", "bytes"),
        ("visible uint8 tubelets and cached targets", "visible"),
    ):
        yield {"group": group, "name": name, "build": "worker_item", "form": form, "picture": (340, 256)}


# Running


def gemm_rate() -> float:
    """FLOPs a CPU second of this thread's best float32 matrix product, right now."""
    left, right = torch.randn(1280, 768), torch.randn(768, 3072)
    left @ right
    rates = []
    for _ in range(10):
        start = time.process_time()
        left @ right
        rates.append(2 * 1280 * 768 * 3072 / (time.process_time() - start))
    return max(rates)


def run_case(case: Case) -> dict[str, Any]:
    """One case in this process."""
    from transformers_lvmae.measure import count_flops, count_saved_bytes, measure

    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.process_time()
    model, work = globals()[case["build"]](case)
    build_seconds = time.process_time() - started
    rate = gemm_rate()
    backward = case.get("backward", False)

    sent: dict[str, int] = {}

    def step() -> None:
        with torch.set_grad_enabled(backward):
            result = work()
            if backward:
                result.backward()
            if isinstance(result, dict):
                sent["sent"] = sum(value.nbytes for value in result.values() if isinstance(value, torch.Tensor))

    gc.collect()
    usage = measure(step)
    clips = case.get("clips", 1)
    if not case["memory"]:
        times = {"build_cpu": build_seconds, "wall": usage.wall / clips, "cpu": usage.cpu / clips}
        return {**times, "gemm_rate": rate}
    result = {"rss": usage.peak_bytes, **sent}
    if case["count"] and model is not None:
        model.zero_grad()
        with torch.set_grad_enabled(backward):
            (output, saved), flops = count_flops(lambda: count_saved_bytes(model, work))
            flops += count_flops(output.backward)[1] if backward else 0
        result |= {"flops": flops, "saved": saved}
    return result


def run_in_fresh_process(case: Case) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if case["memory"]:
        environment["MALLOC_MMAP_THRESHOLD_"] = "262144"
    command = [sys.executable, __file__, "--run", json.dumps(case)]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def run_all(cases: list[Case], repeats: int, count: bool, path: Path) -> None:
    """Append one line a run to `path`: of every case its memory, then its time in each of `repeats` rounds."""
    for case in cases:
        # Made here, so that their frames are not in the memory of a process that is measured.
        if "picture" in case:
            video_file(case)
        if "source" in case:
            demo_data()
        if case.get("build") == "load_segments":
            long_video_file()
    with path.open("a") as file:
        file.writelines(json.dumps(case) + "\n" for case in cases if "build" not in case)  # closed form alone
    cases = [case for case in cases if "build" in case]
    for repeat in range(repeats + 1):
        memory = repeat == 0
        for number, case in enumerate(cases):
            result = run_in_fresh_process({**case, "memory": memory, "count": count and "flops" not in case})
            with path.open("a") as file:
                file.write(json.dumps({**case, **result}) + "\n")
            seen = f"[{repeat}/{repeats}, {number + 1}/{len(cases)}] {case['group']}: {case['name']}"
            figure = f"{result['rss'] / 2**20:.0f} MiB" if memory else f"{result['cpu']:.2f} CPU s"
            print(f"{seen}: {figure}", file=sys.stderr, flush=True)


# Reporting


def medians(runs: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """group -> name -> figure -> median over the runs that have it."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        grouped.setdefault(run["group"], {}).setdefault(run["name"], []).append(run)
    figures = ("cpu", "wall", "rss", "computed", "saved", "flops", "build_cpu", "gemm_rate", "sent")
    return {
        group: {
            name: {
                key: median(run[key] for run in same if key in run)
                for key in figures
                if any(key in run for run in same)
            }
            for name, same in names.items()
        }
        for group, names in grouped.items()
    }


def figure_with_ratio(row: dict[str, float], first: dict[str, float], key: str, unit: float, digits: int) -> str:
    if key not in row:
        return ""
    ratio = f" ({row[key] / first[key]:.2f})" if row is not first and first.get(key) else ""
    return f"{row[key] / unit:,.{digits}f}{ratio}"


def table(group: str, rows: dict[str, dict[str, float]], repeats: dict[str, int]) -> str:
    """One group in Markdown; in brackets, the ratio to its first row."""
    columns = [
        ("CPU s", "cpu", 1, 2),
        ("wall s", "wall", 1, 1),
        ("peak MiB", "rss", 2**20, 0),
        ("computed peak MiB", "computed", 2**20, 0),
        ("saved MiB", "saved", 2**20, 0),
        ("GFLOP", "flops", 1e9, 0),
        ("build CPU s", "build_cpu", 1, 1),
        ("MB sent", "sent", 1e6, 2),
    ]
    columns = [column for column in columns if any(column[1] in row for row in rows.values())]
    first = next(iter(rows.values()))
    head = ["", *(column[0] for column in columns), "of GEMM bound", "runs"]
    lines = [f"### {group}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, row in rows.items():
        bound = f"{row['flops'] / row['cpu'] / row['gemm_rate']:.0%}" if {"flops", "cpu"} <= row.keys() else ""
        cells = [figure_with_ratio(row, first, *column[1:]) for column in columns]
        lines.append(f"| {' | '.join([name, *cells, bound, str(repeats[name])])} |")
    return "\n".join(lines)


def plot_budgets(rows: dict[str, dict[str, float]], path: Path) -> None:
    """Figure 1, right, of the paper: what the decoder's budget costs."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    panels = [("Peak memory (MiB)", "rss", 2**20), ("GFLOP a step", "flops", 1e9), ("CPU seconds a step", "cpu", 1)]
    for axis, (title, key, unit) in zip(axes, panels):
        names = ["all" if name.startswith("all") else name.split(" of")[0] for name in rows]
        axis.bar(names, [row[key] / unit for row in rows.values()], color=["#9aa5b1"] + ["#2f6f9f"] * (len(rows) - 1))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("tokens decoded", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report(path: Path, output: Path) -> str:
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    results = medians(runs)
    tables = []
    for group, rows in results.items():
        timed = [run["name"] for run in runs if run["group"] == group and "cpu" in run]
        repeats = {name: timed.count(name) for name in rows}
        tables.append(table(group, rows, repeats))
        if group.startswith("Decoder budget"):
            plot_budgets(rows, output / "decoder_budgets.png")
    text = "\n\n".join(tables) + "\n"
    (output / "tables.md").write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--sizes", nargs="+", choices=list(FIELDS), default=list(FIELDS))
    parser.add_argument("--frames", nargs="+", type=int, default=[16, 32, 64, 128], help="of the pre-training step")
    parser.add_argument("--attention", nargs="+", choices=["sdpa", "eager"], default=["sdpa", "eager"])
    parser.add_argument("--finetune_frames", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--memory_frames", nargs="+", type=int, default=[32], help="of the memory's fine-tuning steps")
    parser.add_argument("--layers", type=int, default=12, help="encoder layers of the classifiers")
    parser.add_argument("--names", nargs="+", help="only these rows of the groups")
    parser.add_argument("--no_count", action="store_true", help="neither FLOPs nor saved bytes: saves a step a case")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of a case, after the one for memory")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/benchmark"), help="results of earlier runs stay in it"
    )
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run_case(json.loads(args.run))))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    cases = [case for group in args.cases for case in globals()[f"{group}_cases"](args)]
    cases = [case for case in cases if not args.names or case["name"] in args.names]
    run_all(cases, args.repeats, not args.no_count, args.output / "results.jsonl")
    print(report(args.output / "results.jsonl", args.output))


if __name__ == "__main__":
    main()
