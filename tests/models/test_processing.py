"""The three processors: results, saving and loading, errors, and the pipeline that uses them."""

import io
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision.transforms.v2.functional as tvF
import transformers.dynamic_module_utils as dynamic
from transformers import AutoImageProcessor, AutoVideoProcessor, VideoMAEVideoProcessor, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_imports
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils.import_utils import is_torchcodec_usable
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from transformers_lvmae import LVMAEConfig, LVMAEForVideoClassification
from transformers_lvmae.models import video_io
from transformers_lvmae.models.image_processing_lvmae import LVMAEImageProcessor
from transformers_lvmae.models.image_processing_pil_lvmae import LVMAEImageProcessorPil
from transformers_lvmae.models.video_io import write_video
from transformers_lvmae.models.video_processing_lvmae import MOST_FRAMES, LVMAEVideoProcessor
from transformers_lvmae.models.video_seeking import VideoReadError


SMALL = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
ALL = [LVMAEVideoProcessor, LVMAEImageProcessor, LVMAEImageProcessorPil]
# The back ends round a resized pixel to uint8 each in its own way: one step of 255, after division by the smallest std.
ONE_STEP = 1 / 255 / min(IMAGENET_DEFAULT_STD) + 1e-5


def random_clip(num_frames: int = 20, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 48, 64, channels), dtype=np.uint8)


def pixels(processor, videos, **kwargs) -> torch.Tensor:
    return processor(videos, return_tensors="pt", **kwargs)["pixel_values_videos"]


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return random_clip()


@pytest.fixture(scope="module")
def video_path(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_video(path, clip)
    return path


@pytest.fixture(scope="module")
def model() -> LVMAEForVideoClassification:
    config = LVMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=8,
        tubelet_size=2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        num_labels=3,
    )
    torch.manual_seed(0)
    return LVMAEForVideoClassification(config).eval()


# Pixels


def test_video_processor_equals_videomae(clip):
    settings = {**SMALL, "image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    reference = VideoMAEVideoProcessor(**settings)
    ours = LVMAEVideoProcessor(**SMALL)
    for videos in (clip, clip.transpose(0, 3, 1, 2), torch.from_numpy(clip), [clip, clip[::-1].copy()], list(clip)):
        expected = reference(videos, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels(ours, videos), expected, rtol=0, atol=0)


def test_image_processors_equal_video_processor(clip):
    expected = pixels(LVMAEVideoProcessor(**SMALL), clip)
    assert expected.shape == (1, 20, 3, 32, 32)
    frames = [PIL.Image.fromarray(frame) for frame in clip]
    for videos in (list(clip), frames, clip, [list(clip)], clip[None]):
        torch.testing.assert_close(pixels(LVMAEImageProcessor(**SMALL), videos), expected)
        torch.testing.assert_close(pixels(LVMAEImageProcessorPil(**SMALL), videos), expected, rtol=0, atol=ONE_STEP)


@pytest.mark.parametrize(
    ("frame", "resized"),
    [((90, 160), (32, 56)), ((180, 320), (32, 56)), ((160, 80), (112, 56)), ((80, 80), (56, 56)), ((30, 52), (32, 56))],
    ids=["same shape", "twice as large", "portrait", "square", "smaller"],
)
def test_a_crop_that_is_not_square_is_covered_and_no_more(frame, resized):
    """The crop of 32 x 56 pixels is all that two frames of this shape have, and the full width or height of others."""
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 56}, "do_normalize": False}
    clip = np.random.default_rng(0).integers(0, 256, (2, *frame, 3), dtype=np.uint8)
    video = torch.from_numpy(clip).movedim(-1, 1)
    whole = tvF.resize(video, list(resized), interpolation=tvF.InterpolationMode.BILINEAR, antialias=True)
    expected = tvF.center_crop(whole, [32, 56])
    assert torch.equal(LVMAEVideoProcessor(**settings).fit(video), expected)
    for processor, tolerance in [
        (LVMAEVideoProcessor, 1e-6),
        (LVMAEImageProcessor, 1e-6),
        (LVMAEImageProcessorPil, 1 / 255 + 1e-6),
    ]:
        values = pixels(processor(**settings), list(clip))[0]
        torch.testing.assert_close(values, expected / 255, rtol=0, atol=tolerance)


def test_processors_share_their_defaults():
    video, *images = [processor().to_dict() for processor in ALL]
    for image in images:
        assert {name: video[name] for name in image if name != "image_processor_type"} == {
            name: image[name] for name in image if name != "image_processor_type"
        }
    assert tuple(video["image_mean"]) == tuple(IMAGENET_DEFAULT_MEAN)
    assert "fps" not in video
    assert "num_frames" not in video


def test_setting_for_the_fsq_model(clip):
    processor = LVMAEVideoProcessor(size={"height": 112, "width": 112}, do_center_crop=False, do_normalize=False)
    values = pixels(processor, clip)
    assert values.shape == (1, 20, 3, 112, 112)
    assert values.dtype == torch.float32
    assert 0 <= values.min() < 0.1
    assert 0.9 < values.max() <= 1
    flat = np.full((2, 48, 64, 3), 51, dtype=np.uint8)
    torch.testing.assert_close(pixels(processor, flat), torch.full((1, 2, 3, 112, 112), 0.2))


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channels(channels):
    settings = {**SMALL, "do_convert_rgb": False, "image_mean": [0.5] * channels, "image_std": [0.25] * channels}
    values = random_clip(6, channels)
    expected = pixels(LVMAEVideoProcessor(**settings), values)
    assert expected.shape == (1, 6, channels, 32, 32)
    torch.testing.assert_close(pixels(LVMAEImageProcessor(**settings), list(values)), expected)
    with_pil = pixels(LVMAEImageProcessorPil(**settings), list(values))
    torch.testing.assert_close(with_pil, expected, rtol=0, atol=1 / 255 / 0.25 + 1e-5)


def test_grey_and_transparent_video_becomes_rgb():
    processor = LVMAEVideoProcessor(**SMALL)
    grey = random_clip(4, 1)
    torch.testing.assert_close(pixels(processor, grey), pixels(processor, grey.repeat(3, axis=-1)))
    torch.testing.assert_close(pixels(processor, [frame[..., 0] for frame in grey]), pixels(processor, grey))
    clear = random_clip(4, 4)
    clear[..., 3] = 0
    white = np.full((4, 48, 64, 3), 255, dtype=np.uint8)
    torch.testing.assert_close(pixels(processor, clear), pixels(processor, white))
    floats = (clear / 255).astype(np.float32)
    torch.testing.assert_close(pixels(processor, floats, do_rescale=False), pixels(processor, white), rtol=0, atol=1e-5)
    for image_processor in (LVMAEImageProcessor(**SMALL), LVMAEImageProcessorPil(**SMALL)):
        torch.testing.assert_close(pixels(image_processor, list(clear)), pixels(processor, white))


def test_palette_images_keep_their_colours(clip):
    frames = [PIL.Image.fromarray(frame).quantize(16) for frame in clip[:2]]
    expected = pixels(LVMAEVideoProcessor(**SMALL), [frame.convert("RGB") for frame in frames])
    torch.testing.assert_close(pixels(LVMAEVideoProcessor(**SMALL), frames), expected)


def test_flipped_view_equals_its_copy(clip):
    flipped = clip[:, :, ::-1]
    for processor in (LVMAEVideoProcessor(**SMALL), LVMAEImageProcessor(**SMALL)):
        torch.testing.assert_close(pixels(processor, list(flipped)), pixels(processor, flipped.copy()))
        torch.testing.assert_close(pixels(processor, flipped), pixels(processor, flipped.copy()))


# Sampling


@pytest.mark.parametrize(("total", "num_frames"), [(300, 16), (128, 128), (129, 128), (17, 16), (1000, 7), (5, 1)])
def test_long_clip_is_sampled_as_transformers_does(total, num_frames):
    metadata = VideoMetadata(total_num_frames=total, fps=25.0)
    expected = default_sample_indices_fn(metadata, num_frames=num_frames)
    np.testing.assert_array_equal(LVMAEVideoProcessor().sample_frames(metadata, num_frames=num_frames), expected)
    np.testing.assert_array_equal(
        LVMAEVideoProcessor().sample_frames(metadata, fps=12.5), default_sample_indices_fn(metadata, fps=12.5)
    )


@pytest.mark.parametrize("num_frames", [16, 128])
def test_short_clip_is_stretched(num_frames):
    indices = LVMAEVideoProcessor().sample_frames(VideoMetadata(total_num_frames=10), num_frames=num_frames)
    times = np.bincount(indices)
    assert len(indices) == num_frames
    assert (np.diff(indices) >= 0).all()
    assert len(times) == 10
    assert times.max() - times.min() <= 1
    if num_frames == 16:
        assert indices.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9]


def test_more_frames_a_second_than_the_video_has():
    metadata = VideoMetadata(total_num_frames=10, fps=10.0)
    assert LVMAEVideoProcessor().sample_frames(metadata, fps=20).tolist() == [i // 2 for i in range(20)]


def test_a_clip_shorter_than_a_frame_of_the_rate_has_one_frame():
    metadata = VideoMetadata(total_num_frames=10, fps=10.0)
    assert LVMAEVideoProcessor().sample_frames(metadata, fps=0.5).tolist() == [0]
    assert LVMAEVideoProcessor().sample_frames(metadata, fps=2).tolist() == [0, 5]


def test_sampling_settings_and_calls(clip):
    saved = LVMAEVideoProcessor(**SMALL, do_sample_frames=True, fps=5)
    metadata = {"total_num_frames": 20, "fps": 10.0}
    assert pixels(saved, clip, video_metadata=metadata).shape[1] == 10
    assert pixels(saved, clip, video_metadata=metadata, num_frames=7).shape[1] == 7
    assert pixels(LVMAEVideoProcessor(**SMALL, num_frames=4), clip, do_sample_frames=True).shape[1] == 4
    assert pixels(LVMAEVideoProcessor(**SMALL), clip, do_sample_frames=True).shape[1] == 20


@pytest.mark.parametrize("num_frames", [4, 32])
def test_sampled_array_frames_and_file_agree(clip, video_path, num_frames):
    processor = LVMAEVideoProcessor(**SMALL)
    options = {"do_sample_frames": True, "num_frames": num_frames, "return_tensors": "pt", "return_metadata": True}
    frames, _ = video_io.decode_video(video_path, lambda metadata: range(metadata.total_num_frames))
    results = [processor(source, **options) for source in (video_path, frames, list(frames))]
    expected = default_sample_indices_fn(VideoMetadata(20), 4).tolist() if num_frames == 4 else None
    for result in results:
        torch.testing.assert_close(result["pixel_values_videos"], results[0]["pixel_values_videos"], rtol=0, atol=0)
        assert result["video_metadata"][0].frames_indices == results[0]["video_metadata"][0].frames_indices
        assert expected is None or result["video_metadata"][0].frames_indices == expected


# Sources


@pytest.fixture
def url(video_path):
    """Address of the clip on a web server of this machine."""
    handler = partial(QuietHandler, directory=str(video_path.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{video_path.name}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_web_address(url, video_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    processor = LVMAEVideoProcessor(**SMALL)
    torch.testing.assert_close(pixels(processor, url), pixels(processor, video_path), rtol=0, atol=0)


def test_sources_agree(video_path):
    data = video_path.read_bytes()
    frames, _ = video_io.decode_video(video_path, lambda metadata: range(metadata.total_num_frames))
    sources = [
        video_path,
        str(video_path),
        data,
        io.BytesIO(data),
        {"path": str(video_path), "bytes": None},
        {"path": None, "bytes": data},
        frames,
        frames.numpy().transpose(0, 2, 3, 1),
        list(frames),
        [PIL.Image.fromarray(frame) for frame in frames.permute(0, 2, 3, 1).numpy()],
    ]
    processor = LVMAEVideoProcessor(**SMALL)
    expected = pixels(processor, video_path)
    for source in sources:
        torch.testing.assert_close(pixels(processor, source), expected, rtol=0, atol=0)
        if not hasattr(source, "read"):
            torch.testing.assert_close(
                pixels(processor, [source, source]), expected.repeat(2, 1, 1, 1, 1), rtol=0, atol=0
            )


def test_batch_of_files_of_any_length(clip, video_path, tmp_path):
    write_video(tmp_path / "short.mp4", clip[:5])
    sources = [video_path, {"path": str(tmp_path / "short.mp4"), "bytes": None}, clip]
    processor = LVMAEVideoProcessor(**SMALL)
    batch = pixels(processor, sources, do_sample_frames=True, num_frames=8)
    assert batch.shape == (3, 8, 3, 32, 32)
    for source, values in zip(sources, batch, strict=True):
        torch.testing.assert_close(pixels(processor, source, do_sample_frames=True, num_frames=8)[0], values)
    nested = pixels(processor, [sources[:2], sources[2:]], do_sample_frames=True, num_frames=8)
    torch.testing.assert_close(nested, batch)
    lengths = [len(video) for video in processor(sources)["pixel_values_videos"]]
    assert lengths == [20, 5, 20]


@pytest.mark.skipif(not is_torchcodec_usable(decode="video"), reason="torchcodec does not load here")
def test_torchcodec_decoder_and_back_ends_agree(video_path):
    from torchcodec.decoders import VideoDecoder

    processor = LVMAEVideoProcessor(**SMALL)
    expected = pixels(processor, video_path)
    torch.testing.assert_close(pixels(processor, VideoDecoder(str(video_path))), expected, rtol=0, atol=0)
    for backend in ("pyav", "torchcodec"):
        frames, metadata = video_io.decode_video(video_path, lambda metadata: range(20), backend=backend)
        assert metadata.video_backend == backend
        torch.testing.assert_close(pixels(processor, frames), expected, rtol=0, atol=0)


def test_frames_of_a_file_get_their_size_while_they_are_decoded(video_path, monkeypatch):
    """In blocks, before all are in memory, with the settings of the call; the result is that of resizing all frames."""
    frames, _ = video_io.decode_video(video_path, lambda metadata: range(20))
    processor, seen = LVMAEVideoProcessor(**SMALL), []
    monkeypatch.setattr(video_io, "Opening", partial(video_io.Opening, block_bytes=3 * frames[0].nbytes))
    fit = processor.fit
    monkeypatch.setattr(
        processor, "fit", lambda frames, **settings: seen.append(len(frames)) or fit(frames, **settings)
    )
    for settings in (
        {},
        {"size": {"shortest_edge": 40}},
        {"crop_size": {"height": 20, "width": 24}},
        {"do_resize": False},
    ):
        seen.clear()
        torch.testing.assert_close(
            pixels(processor, video_path, **settings), pixels(processor, frames, **settings), rtol=0, atol=0
        )
        assert seen == [3] * 6 + [2]


def test_the_settings_or_the_call_choose_the_frames_of_a_file(video_path):
    chooses, plain = LVMAEVideoProcessor(**SMALL, num_frames=4), LVMAEVideoProcessor(**SMALL)
    expected = pixels(plain, video_path, num_frames=4, do_sample_frames=True)
    assert expected.shape[1] == 4
    for result in (pixels(chooses, video_path), pixels(plain, video_path, num_frames=4)):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert pixels(chooses, video_path, do_sample_frames=False).shape[1] == 20
    assert pixels(chooses, video_path, fps=5).shape[1] == 4
    assert pixels(chooses, video_path, num_frames=6).shape[1] == 6


def test_a_film_is_not_read_whole_without_a_word(tmp_path):
    write_video(tmp_path / "film.mp4", np.zeros((MOST_FRAMES + 1, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"Got a video of 1025 frames, expected num_frames or fps.*: pass num_frames"):
        pixels(LVMAEVideoProcessor(**SMALL), tmp_path / "film.mp4")
    assert pixels(LVMAEVideoProcessor(**SMALL), tmp_path / "film.mp4", num_frames=2).shape[1] == 2


def test_files_and_frames_share_a_batch(clip, video_path):
    processor = LVMAEVideoProcessor(**SMALL)
    mixed = processor([video_path, clip[:5]], return_metadata=True)
    assert [len(video) for video in mixed["pixel_values_videos"]] == [20, 5]
    assert [metadata.total_num_frames for metadata in mixed["video_metadata"]] == [20, 5]


# Saving and loading


@pytest.mark.parametrize("processor_class", ALL)
def test_save_and_load(processor_class, clip, tmp_path):
    processor = processor_class(**SMALL, image_mean=[0.4, 0.5, 0.6], do_center_crop=False, do_convert_rgb=False)
    processor.save_pretrained(tmp_path)
    loaded = processor_class.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    torch.testing.assert_close(pixels(loaded, list(clip)), pixels(processor, list(clip)), rtol=0, atol=0)
    assert processor_class.from_pretrained(tmp_path, do_normalize=False).do_normalize is False


def test_one_folder_holds_both_files(tmp_path):
    LVMAEVideoProcessor(**SMALL).save_pretrained(tmp_path)
    LVMAEImageProcessorPil(size=40).save_pretrained(tmp_path)
    video = AutoVideoProcessor.from_pretrained(tmp_path)
    assert type(video) is LVMAEVideoProcessor
    assert video.size["shortest_edge"] == 32
    for backend, expected in ((None, LVMAEImageProcessor), ("torchvision", LVMAEImageProcessor), ("pil", ALL[2])):
        image = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(image) is expected
        assert image.size["shortest_edge"] == 40


def test_auto_classes_find_the_processors_by_the_config(tmp_path):
    LVMAEConfig().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is LVMAEImageProcessor
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is LVMAEVideoProcessor


@pytest.mark.parametrize("processor_class", ALL)
def test_works_as_remote_code(processor_class, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    auto_class = "AutoVideoProcessor" if processor_class is LVMAEVideoProcessor else "AutoImageProcessor"
    monkeypatch.setattr(processor_class, "_auto_class", auto_class)
    folder = tmp_path / "model"
    processor = processor_class(**SMALL)
    processor.save_pretrained(folder)
    remote = get_class_from_dynamic_module(processor.auto_map[auto_class], str(folder))
    assert remote.__module__.startswith("transformers_modules")
    loaded = remote.from_pretrained(folder)
    torch.testing.assert_close(pixels(loaded, list(clip)), pixels(processor, list(clip)), rtol=0, atol=0)


@pytest.mark.parametrize("processor_class", ALL)
def test_remote_code_asks_for_no_optional_package(processor_class):
    path = sys.modules[processor_class.__module__].__file__
    assert set(get_imports(path)) <= {
        "collections",
        "dataclasses",
        "functools",
        "itertools",
        "numpy",
        "os",
        "torch",
        "transformers",
        "typing",
    }


# Refusals


@pytest.mark.parametrize(
    ("videos", "options", "error", "message"),
    [
        (np.zeros((5,), np.uint8), {}, ValueError, r"shape \(5,\)"),
        (np.zeros((1, 1, 1, 5, 8, 8), np.uint8), {}, ValueError, "expected a frame"),
        (np.zeros((0, 48, 64, 3), np.uint8), {}, ValueError, "no axis of length 0"),
        ([], {}, ValueError, "empty list"),
        ([random_clip(2)[0], random_clip(2)], {}, ValueError, "1 single frames among 2"),
        ([random_clip(1)[0], random_clip(1)[0, :40]], {}, ValueError, "in a clip"),
        (7, {}, TypeError, "Got a int"),
        ({"video": "a.mp4"}, {}, TypeError, "'path' or 'bytes'"),
        (random_clip(2, 2), {}, ValueError, "input_data_format"),
        (random_clip(2), {"image_mean": [0.5]}, ValueError, "3 channels and image_mean of length 1"),
        (random_clip(2, 4), {"do_convert_rgb": False}, ValueError, "4 channels and image_mean of length 3"),
        ([random_clip(2), random_clip(3)], {}, ValueError, r"shapes \[\(2, 3, 32, 32\), \(3, 3, 32, 32\)\]"),
        (random_clip(2), {"do_sample_frames": True, "num_frames": 2, "fps": 2}, ValueError, "num_frames=2 and fps=2"),
        (random_clip(2), {"do_sample_frames": True, "fps": 2}, ValueError, "unknown frame rate"),
        (
            random_clip(2),
            {"do_sample_frames": True, "num_frames": 2, "video_metadata": {"total_num_frames": 9}},
            ValueError,
            "clip of 2 frames with total_num_frames=9",
        ),
        ("missing.mp4", {}, VideoReadError, "missing.mp4"),
        (b"", {}, VideoReadError, "0 bytes"),
        ({"path": None, "bytes": None}, {}, VideoReadError, "neither a path nor bytes"),
    ],
)
def test_errors(videos, options, error, message):
    with pytest.raises(error, match=message):
        pixels(LVMAEVideoProcessor(**SMALL), videos, **options)


@pytest.mark.parametrize("processor_class", ALL[1:])
def test_image_processor_errors(processor_class):
    with pytest.raises(TypeError, match="LVMAEVideoProcessor"):
        pixels(processor_class(**SMALL), "clip.mp4")
    with pytest.raises(ValueError, match="image_mean of length 1"):
        pixels(processor_class(**SMALL), random_clip(2), image_mean=[0.5])
    with pytest.raises(ValueError, match="expected one shape"):
        pixels(processor_class(**SMALL), [random_clip(2), random_clip(3)])


# Pipeline


def test_pipeline_on_a_file(model, video_path):
    processor = LVMAEVideoProcessor(**SMALL)
    classify = pipeline("video-classification", model=model, video_processor=processor)
    scores = {row["label"]: row["score"] for row in classify(str(video_path))}
    values = pixels(processor, video_path, do_sample_frames=True, num_frames=model.config.num_frames)
    with torch.no_grad():
        expected = model(values).logits[0].softmax(-1)
    for label, index in model.config.label2id.items():
        assert scores[label] == pytest.approx(expected[index].item(), abs=1e-6)


def test_the_image_processor_of_the_same_settings_is_saved_with_the_video_processor(tmp_path):
    settings = {**SMALL, "image_mean": [0.4, 0.5, 0.6], "do_normalize": True, "rescale_factor": 0.01}
    LVMAEVideoProcessor(num_frames=4, **settings).save_pretrained(tmp_path)
    expected = LVMAEImageProcessor(**settings).to_dict()
    assert AutoImageProcessor.from_pretrained(tmp_path).to_dict() == expected
    assert LVMAEImageProcessorPil.from_pretrained(tmp_path).image_mean == expected["image_mean"]
    assert AutoVideoProcessor.from_pretrained(tmp_path).num_frames == 4


def test_pipeline_on_a_folder(model, video_path, clip, tmp_path):
    model.save_pretrained(tmp_path)
    LVMAEVideoProcessor(**SMALL).save_pretrained(tmp_path)
    classify = pipeline("video-classification", model=str(tmp_path))
    # The pipeline swallows every error in loading a processor, then falls back to the image processor's first frames.
    assert type(classify.video_processor) is LVMAEVideoProcessor
    direct = pipeline("video-classification", model=model, video_processor=LVMAEVideoProcessor(**SMALL))
    assert classify(str(video_path)) == direct(str(video_path))
    write_video(tmp_path / "short.mp4", clip[:5])
    both = classify([str(video_path), str(tmp_path / "short.mp4")], top_k=1)
    assert [len(rows) for rows in both] == [1, 1]
    paths = [str(video_path), str(tmp_path / "short.mp4")] * 3
    for one, batched in zip(classify(paths), classify(paths, batch_size=4)):
        assert [row["label"] for row in one] == [row["label"] for row in batched]
        assert [row["score"] for row in one] == pytest.approx([row["score"] for row in batched], abs=1e-6)
