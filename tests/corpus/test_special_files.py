"""Unusual but whole files, and things that are no videos: more than 80. Each is read as a straightforward decoding reads it, or refused."""

import os
import struct
import zipfile
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from builders import FIXTURES
from making import pictures, write
from PIL import Image
from reference import decode, digest

from transformers_lvmae.models.video_io import decode_video
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.models.video_sources import VideoAccess


CLIP = FIXTURES / "odd" / "carphone.mp4"
MILLISECONDS = np.arange(60) * 40


def turned(degrees, horizontal=False, vertical=False):
    def prepare(container, stream):
        stream.set_display_rotation(degrees, hflip=horizontal, vflip=vertical)

    return {"prepare": prepare}


def aspect(container, stream):
    stream.codec_context.sample_aspect_ratio = Fraction(4, 3)


def titled(container, stream):
    container.metadata["title"] = "quotes \" ' newline \n <b>html</b> \U0001f3a5"


def two_videos(container, stream):
    second = container.add_stream("libx264", rate=25)
    second.width, second.height, second.pix_fmt = 32, 32, "yuv420p"
    container.start_encoding()
    for packet in second.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")):
        container.mux(packet)
    for packet in second.encode():
        container.mux(packet)


# name -> arguments of `write`
PLAYABLE = {
    **{f"turned_{degrees}.{ending}": turned(degrees) for degrees in (90, 180, 270) for ending in ("mp4", "mov", "mkv")},
    **{
        f"mirrored_{h:d}{v:d}_{degrees}.mp4": turned(degrees, h, v)
        for degrees in (0, 90)
        for h, v in ((1, 0), (0, 1), (1, 1))
    },
    "edit_list.mp4": {"stamps": MILLISECONDS - 440},
    "long_edit_list.mp4": {"stamps": MILLISECONDS - 800, "options": {"x264-params": "keyint=60:bframes=3"}},
    "starts_late.mp4": {"stamps": MILLISECONDS + 5000},
    "starts_late.mkv": {"stamps": MILLISECONDS + 5000},
    "starts_before_zero.mkv": {"stamps": MILLISECONDS - 200},
    "variable_rate.mp4": {"stamps": np.cumsum(np.random.default_rng(0).integers(5, 200, 60))},
    "variable_rate.mkv": {"stamps": np.cumsum(np.random.default_rng(0).integers(5, 200, 60))},
    "pause_of_a_minute.mp4": {"stamps": MILLISECONDS + 60_000 * (np.arange(60) > 30)},
    "one_frame.mp4": {"frames": list(pictures(1))},
    "one_frame.mkv": {"frames": list(pictures(1))},
    "one_frame.avi": {"frames": list(pictures(1)), "codec": "mpeg4"},
    "two_frames.mp4": {"frames": list(pictures(2))},
    "one_keyframe.mp4": {"options": {"x264-params": "keyint=infinite:scenecut=0"}},
    "keyframes_only.mp4": {"options": {"x264-params": "keyint=1"}},
    "open_gop.mp4": {"options": {"x264-params": "keyint=12:open-gop=1:bframes=3"}},
    "pyramid.mkv": {"options": {"x264-params": "keyint=24:bframes=8:b-pyramid=normal:b-adapt=0"}},
    "intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}},
    "interlaced.mp4": {"options": {"x264-params": "keyint=12:tff=1"}},
    "one_a_second.mp4": {"rate": 1},
    "a_thousand_a_second.mp4": {"rate": 1000},
    "ntsc.mp4": {"rate": Fraction(30000, 1001)},
    "ntsc.mkv": {"rate": Fraction(24000, 1001)},
    "odd_size.mp4": {"frames": list(pictures(12, 47, 63)), "pixel_format": "yuv444p"},
    "narrow.mp4": {"frames": list(pictures(12, 2, 1024))},
    "tiny.mp4": {"frames": list(pictures(12, 2, 2))},
    "tall.mkv": {"frames": list(pictures(12, 1024, 16))},
    "gray.mkv": {"codec": "ffv1", "pixel_format": "gray"},
    "ten_bits.mp4": {"pixel_format": "yuv420p10le"},
    "yuv422.mp4": {"pixel_format": "yuv422p"},
    "yuv444.mp4": {"pixel_format": "yuv444p"},
    "full_range.mp4": {"pixel_format": "yuvj420p"},
    "rgb.mkv": {"codec": "ffv1", "pixel_format": "bgr0"},
    "alpha.mov": {"codec": "prores_ks", "pixel_format": "yuva444p10le", "options": {"profile": "4"}},
    "alpha.webm": {"codec": "libvpx-vp9", "pixel_format": "yuva420p", "options": {"cpu-used": "8"}},
    "lossless.mp4": {"options": {"qp": "0"}, "pixel_format": "yuv444p"},
    "raw.avi": {"codec": "rawvideo", "pixel_format": "yuv420p"},
    "raw.y4m": {"codec": "wrapped_avframe", "frames": list(pictures(12))},
    "stream.ivf": {"codec": "libvpx"},
    "stream.nut": {},
    "pictures.gif": {"codec": "gif", "pixel_format": "rgb8", "frames": list(pictures(12))},
    "aspect.mp4": {"prepare": aspect},
    "title.mp4": {"prepare": titled},
    "title.mkv": {"prepare": titled},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "fragments_late.mp4": {"container_options": {"movflags": "frag_keyframe"}},
    "fast_start.mov": {"container_options": {"movflags": "faststart"}},
    "cues_in_front.mkv": {"container_options": {"cues_to_front": "1"}},
    "live.mkv": {"container_options": {"live": "1"}},
    "live.webm": {"codec": "libvpx", "container_options": {"live": "1"}},
    "sound.mp4": {"sound": "aac"},
    "sound.mkv": {"sound": "libopus"},
    "UPPER.MP4": {},
    "wrong_ending.avi.mp4": {},
    "no frames %03d?*[a].mp4": {},
}


def check(path):
    """Whole, sampled and as a segment, the frames are those of the reference; and nothing is reported."""
    reference = decode(str(path))
    assert reference["error"] is None
    digests, seconds = reference["digests"], np.array(reference["seconds"], dtype=float)
    for sample in (
        lambda metadata: range(metadata.total_num_frames),
        lambda metadata: [0, metadata.total_num_frames - 1],
    ):
        clip, metadata = decode_video(path, sample)
        assert metadata.fault is None
        assert metadata.total_num_frames == len(digests)
        assert [digest(frame.permute(1, 2, 0).numpy()) for frame in clip] == [
            digests[number] for number in metadata.frames_indices
        ]
        assert (metadata.height, metadata.width) == tuple(clip.shape[-2:])
    if len(digests) > 1 and not np.isnan(seconds).any():
        assert metadata.duration == pytest.approx(seconds[-1] * len(digests) / (len(digests) - 1), rel=0.03)
        start, end = seconds[len(seconds) // 3] - 1e-4, seconds[-1]
        clip, _ = decode_video(path, lambda metadata: range(metadata.total_num_frames), start=start, end=end)
        inside = [value for value, time in zip(digests, seconds) if start <= time < end - 1e-6]
        assert [digest(frame.permute(1, 2, 0).numpy()) for frame in clip] == inside


@pytest.mark.parametrize("name", PLAYABLE)
def test_unusual_files_play(name, tmp_path):
    check(write(tmp_path / name, **PLAYABLE[name]))


def test_a_raw_stream_plays(tmp_path):
    """Without a container there are no time stamps."""
    path = write(tmp_path / "stream.h264", options={"x264-params": "keyint=12:bframes=0"})
    clip, metadata = decode_video(path, lambda metadata: range(metadata.total_num_frames))
    digests = decode(str(path))["digests"]
    assert [digest(frame.permute(1, 2, 0).numpy()) for frame in clip] == digests
    assert metadata.total_num_frames == len(digests) == 60


def test_other_titles_than_utf8(tmp_path):
    for ending in ("mp4", "mkv", "avi"):
        path = tmp_path / f"clip.{ending}"
        write(path, "mpeg4", prepare=lambda container, stream: container.metadata.update(title="LATINTITLE"))
        path.write_bytes(path.read_bytes().replace(b"LATINTITLE", b"\xe9t\xe9 \xff\xfe\x80\xc0.."))
        _clip, metadata = decode_video(path, lambda metadata: [0, 59])
        assert (metadata.total_num_frames, metadata.fault) == (60, None)


def test_the_first_of_two_videos_is_read(tmp_path):
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = []
        for size in (64, 32):
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
            streams.append(stream)
        for _ in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.zeros((stream.height, stream.width, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    clip, metadata = decode_video(tmp_path / "two.mkv", lambda metadata: range(10))
    assert (clip.shape[-1], metadata.total_num_frames) == (64, 10)


def test_frames_of_two_sizes_need_a_view(tmp_path):
    """A stream may change its size; a resize makes one size of it."""
    parts = [write(tmp_path / f"{size}.ts", frames=list(pictures(10, size, size))) for size in (32, 64)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(VideoReadError, match=r"got frames of two sizes"):
        decode_video(path, lambda metadata: range(metadata.total_num_frames))
    clip, _ = decode_video(
        path, lambda metadata: range(metadata.total_num_frames), view=lambda frames: frames[:, :, :8, :8]
    )
    assert clip.shape == (20, 3, 8, 8)


def enormous():
    """A video whose header promises frames of 30,000 x 30,000 pixels."""
    return struct.pack("<4sHH4sHHIIII", b"DKIF", 0, 32, b"VP80", 30000, 30000, 25, 1, 10, 0) + bytes(200)


REFUSED = {
    "empty.mp4": b"",
    "one_byte.mp4": b"x",
    "zeros.mp4": bytes(100_000),
    "noise.mp4": np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes(),
    "text.mp4": b"This is a text.\n" * 1000,
    "page.mp4": b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>" * 10,
    "json.mp4": b'{"error": "not found"}',
    "pointer.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "script.mp4": b"#!/bin/sh\nexit 1\n",
    "subtitles.srt": b"1\n00:00:00,000 --> 00:00:02,000\nHello\n\n2\n00:00:02,000 --> 00:00:04,000\nyou\n",
    "subtitles.mp4": b"[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,0:00:00.00,0:00:02.00,Default,,0,0,0,,Hello\n",
    "playlist.m3u8": b"#EXTM3U\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "list.ffconcat": b"ffconcat version 1.0\nfile clip.mp4\n",
    "session.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "manifest.mpd": b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'/>",
    "enormous.ivf": enormous(),
    "head_alone.mp4": CLIP.read_bytes()[:40],
    "no_index.mp4": CLIP.read_bytes()[: CLIP.read_bytes().rindex(b"moov") - 4]
    if b"moov" in CLIP.read_bytes()[1000:]
    else b"\0",
    "unknown_codec.mp4": CLIP.read_bytes().replace(b"avc1", b"zzzz"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_video_is_refused(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(REFUSED[name])
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    with pytest.raises(VideoReadError, match=rf"Cannot read video .*{name}: got .*, expected "):
        decode_video(path, lambda metadata: [0], access=VideoAccess(max_seconds=20))


def sound_alone(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def song_with_a_cover(path):
    Image.new("RGB", (64, 64)).save(path.with_suffix(".jpg"))
    with av.open(str(path), "w") as container, av.open(str(path.with_suffix(".jpg"))) as picture:
        stream = container.add_stream_from_template(picture.streams.video[0])
        stream.disposition = Disposition.attached_pic
        for packet in picture.demux():
            if packet.size:
                packet.stream = stream
                container.mux(packet)


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("clip.mp4", CLIP.read_bytes())


KINDS = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a dangling link": lambda path: path.symlink_to("nowhere.mp4"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: None,
    "a terabyte of nothing": lambda path: (path.touch(), os.truncate(path, 2**40)),
    "sound alone": sound_alone,
    "a song with its cover": song_with_a_cover,
    "an archive": archive,
}


@pytest.mark.parametrize("kind", KINDS)
def test_things_that_are_no_videos_are_refused(kind, tmp_path):
    path = tmp_path / "clip.mp4"
    KINDS[kind](path)
    with pytest.raises(VideoReadError, match=r"Cannot read video .*clip\.mp4: got .*, expected "):
        decode_video(path, lambda metadata: [0], access=VideoAccess(max_seconds=20))


def test_there_are_enough():
    assert len(PLAYABLE) + len(REFUSED) + len(KINDS) >= 60
