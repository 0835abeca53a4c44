"""Work of the input path: decoding, loading, tokenizer views, cached targets. Each function returns (None, one piece of work)."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


Built = tuple[None, Callable[[], Any]]
SCRATCH = Path(tempfile.gettempdir())
EXAMPLES = Path(__file__).parents[1] / "examples"


def video_file(picture: tuple[int, int]) -> str:
    """Moving noise over a gradient, `picture` (width, height), 10 s at 30 frames a second, in the scratch folder."""
    import numpy as np

    from transformers_lvmae.models.video_io import write_video

    width, height = picture
    path = SCRATCH / f"lvmae_benchmark_{width}x{height}.mp4"
    if not path.exists():
        generator = np.random.default_rng(0)
        texture = generator.integers(0, 60, (height, width + 300, 3), dtype=np.uint8)
        shade = np.linspace(0, 190, height, dtype=np.uint8)[:, None, None]
        write_video(path, np.stack([texture[:, start : start + width] + shade for start in range(300)]), fps=30, crf=23)
    return str(path)


def long_video_file() -> str:
    """The 340 x 256 film 30 times over: 5 minutes, a keyframe at least every 250 frames."""
    import av

    path = SCRATCH / "lvmae_benchmark_long.mp4"
    if not path.exists():
        with av.open(video_file((340, 256))) as short, av.open(str(path), "w") as container:
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


def digits_folder() -> Path:
    """64 clips of 128 frames of examples/make_digits.py, in the scratch folder."""
    path = SCRATCH / "lvmae_benchmark_digits"
    if not (path / "test").exists():
        sizes = ["--train", "64", "--validation", "8", "--test", "8"]
        command = [sys.executable, str(EXAMPLES / "make_digits.py"), str(path), "--task", "motion", *sizes]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return path


def decode_only(picture: tuple[int, int], clips: int) -> Built:
    """The codec and the pixels, nothing else: PyAV's frames, each sampled one resized at once, antialiased, as uint8."""
    import av
    import numpy as np
    from torchvision.transforms.v2.functional import resize

    path = video_file(picture)

    def work() -> None:
        for _ in range(clips):
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


def start_decoder(path: str) -> None:
    """Decode one frame, so that the process that decodes is there before the measurement, as it is in all but the first clip of a run."""
    from transformers_lvmae.models.video_io import decode_video

    decode_video(path, lambda metadata: range(1))


def load_clips(picture: tuple[int, int], clips: int, uint8: bool, workers: int = 0) -> Built:
    """What training reads: decode, sample, resize, crop; uint8 or normalized float pixels, in this process or in new workers."""
    from torch.utils.data import DataLoader

    from transformers_lvmae import LVMAEConfig
    from transformers_lvmae.data import ByteVideoClips, VideoClips, processor_for

    rows: Any = [{"video": video_file(picture)}] * clips
    dataset = (ByteVideoClips if uint8 else VideoClips)(rows, processor_for(LVMAEConfig()), 128)
    loader = DataLoader(dataset, batch_size=1, num_workers=workers)
    start_decoder(video_file(picture))

    def work() -> None:
        for _ in loader:
            pass

    return None, work


def load_segment(share: float, seek: bool) -> Built:
    """64 consecutive frames, from `share` of the way into 5 minutes of video: by seeking, or by decoding up to there."""
    import av

    from transformers_lvmae.models.video_io import decode_video

    path = long_video_file()
    first = int(share * 8900)
    start_decoder(path)

    def seek_to() -> None:
        decode_video(path, lambda metadata: range(64), start=first / 30, end=first / 30 + 70 / 30)

    def read_on() -> None:
        with av.open(path) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if first <= number < first + 64:
                    frame.to_ndarray(format="rgb24")
                elif number == first + 64:
                    break

    return None, seek_to if seek else read_on


def tokenizer_view() -> Built:
    """A clip as the tokenizer sees it: half the size."""
    clip = torch.rand(128, 3, 224, 224)
    return None, lambda: torch.nn.functional.interpolate(clip, size=112, mode="bilinear", antialias=True)


def quickstart_models() -> tuple[Any, Any]:
    """Pre-training model and tokenizer of the sizes of scripts/runs/quickstart.sh."""
    from transformers_lvmae import FSQMagViTConfig, FSQMagViTModel, LVMAEConfig, LVMAEForPreTraining

    config = LVMAEConfig(
        image_size=32,
        patch_size=4,
        tubelet_size=4,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=256,
    )
    tokenizer_config = FSQMagViTConfig(
        image_size=32,
        base_channels=32,
        num_res_blocks=1,
        channel_multipliers=(1, 2),
        norm_num_groups=8,
        temporal_downsample=(True,),
        stem_patch_size=(2, 2, 2),
    )
    return LVMAEForPreTraining(config).train(), FSQMagViTModel(tokenizer_config)


def cache_of(rows: Any, config: Any, tokenizer: Any, folder: str) -> Any:
    """Write and open the target cache of fixed clips."""
    from transformers_lvmae.data import processor_for
    from transformers_lvmae.targets.builder import TargetBuilder
    from transformers_lvmae.targets.cache import TargetCache
    from transformers_lvmae.targets.cache_writing import (
        ByteClips,
        TargetMaker,
        begin_cache,
        make_manifest,
        write_targets,
    )

    processor = processor_for(config)
    clips, maker = (
        ByteClips(rows, processor, config.num_frames),
        TargetMaker(TargetBuilder(config, processor, tokenizer)),
    )
    manifest = make_manifest(clips, maker)
    begin_cache(Path(folder), manifest)
    write_targets(Path(folder), clips, maker, manifest, batch_size=8)
    return TargetCache(folder)


def digits_epoch(source: str) -> Built:
    """Every clip of the digits once, in batches of 8: read, targets, forward and backward.

    Args:
        source: of the targets: "fly" tokenizes each clip, "cache" reads them; "make" writes the cache instead of training.
    """
    from torch.utils.data import DataLoader

    from transformers_lvmae import LVMAEPreTrainer, LVMAEPreTrainingArguments
    from transformers_lvmae.data import load_video_dataset, processor_for
    from transformers_lvmae.targets.cache import clips_to_train_on

    model, tokenizer = quickstart_models()
    rows, folder = load_video_dataset(digits_folder())["train"], tempfile.mkdtemp()
    if source == "make":
        return None, lambda: cache_of(rows, model.config, tokenizer, folder)
    cache = cache_of(rows, model.config, tokenizer, folder) if source == "cache" else None
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
                model(**trainer.target_builder(batch)).loss.backward()

    return None, work


def worker_item(picture: tuple[int, int], form: str) -> Built:
    """What a data loader's worker makes of a video for ViT-B at 128 frames, and sends.

    Args:
        form: "floats", "bytes", or "visible": only the visible tubelets, with cached targets; "chosen": a quarter of the tubelets, for
            fine-tuning, chosen by learned scores in the worker.
    """
    from datasets import Dataset, Video

    from transformers_lvmae import FSQMagViTConfig, FSQMagViTModel, LVMAEConfig
    from transformers_lvmae.data import ChosenVideoClips, VideoClips, processor_for
    from transformers_lvmae.models.token_selection import LVMAETokenSelector
    from transformers_lvmae.targets.cache import clips_to_train_on
    from transformers_lvmae.training.pretraining import collate_masked_clips

    config = LVMAEConfig()
    rows = Dataset.from_dict({"video": [video_file(picture)]}).cast_column("video", Video(decode=False))
    start_decoder(video_file(picture))
    cache = None
    if form == "visible":
        tokenizer = FSQMagViTModel(FSQMagViTConfig.from_size("tiny"))
        cache = cache_of(rows, config, tokenizer, tempfile.mkdtemp())
    clips: VideoClips = clips_to_train_on(rows, processor_for(config), config, cache)
    if form == "floats":
        clips = VideoClips(rows, processor_for(config), config.num_frames)
    if form == "chosen":
        selector = LVMAETokenSelector(LVMAEConfig(token_keep_ratio=0.25))
        clips = ChosenVideoClips(rows, processor_for(config), config.num_frames, selector=selector)
    return None, lambda: collate_masked_clips([clips[0]])
