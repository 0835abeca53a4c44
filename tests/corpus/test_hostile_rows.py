"""Rows that ask for what they should not get, or make no sense: more than 70. Each is refused in seconds, by name, and costs one clip."""

import os
import re
import time

import pytest
from builders import FIXTURES

from transformers_lvmae import LVMAEConfig
from transformers_lvmae.data import VideoClips, VideoReading, processor_for
from transformers_lvmae.evaluation.views import VideoViews
from transformers_lvmae.models import video_sources
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.models.video_sources import VideoAccess


CLIP = FIXTURES / "odd" / "carphone.mp4"
PROTOCOLS = [
    "tcp",
    "udp",
    "rtp",
    "rtsp",
    "rtmp",
    "rtmps",
    "rtmpt",
    "srtp",
    "srt",
    "rist",
    "mms",
    "mmsh",
    "mmst",
    "ftp",
    "sftp",
    "gopher",
    "gophers",
    "async",
    "cache",
    "concat",
    "concatf",
    "crypto",
    "data",
    "fd",
    "file",
    "hls",
    "icecast",
    "ipfs",
    "ipns",
    "md5",
    "pipe",
    "prompeg",
    "subfile",
    "tee",
    "tls",
    "unix",
    "amqp",
    "zmq",
    "smb",
    "bluray",
    "lavfi",
    "x11grab",
    "v4l2",
    "ws",
    "wss",
    "ssh",
    "nfs",
    "dict",
    "ldap",
]
ADDRESSES = [
    *(f"{protocol}://127.0.0.1:9/clip.mp4" for protocol in PROTOCOLS),
    "http://127.0.0.1:9/clip.mp4",
    "http://[::1]:9/clip.mp4",
    "http://",
    "http://no-such-host.invalid/a.mp4",
    "https://[broken/clip.mp4",
    "HTTP://127.0.0.1:9/clip.mp4",
    "zip://clip.mp4::ftp://127.0.0.1:9/a.zip",
    "zip://clip.mp4::/etc/passwd",
    "filecache://clip.mp4::http://127.0.0.1:9/a",
    "://",
]
# Given to FFmpeg as they are, these would be protocols; here they are names of files that do not exist.
NAMES = [
    "",
    " ",
    ".",
    "..",
    "/",
    "~",
    "$HOME/clip.mp4",
    "nul\0byte.mp4",
    "a" * 5000,
    "\udce9.mp4",
    "concat:a.mp4|b.mp4",
    "tcp:127.0.0.1:9",
    "pipe:0",
    "file:/etc/passwd",
    "subfile,,start,0,end,0,,:/etc/passwd",
    "data:video/mp4;base64,AAAA",
    "async:cache:http://127.0.0.1:9/x",
    "/dev/stdin",
    "/dev/zero",
    "/proc/self/mem",
    "/etc/passwd",
    "-i /etc/passwd",
    "`touch hacked`; $(touch hacked)",
    "a.mp4\nfile:/etc/passwd",
]
TIMES = [
    {"start": "soon"},
    {"start": -1.0},
    {"end": -1.0},
    {"start": float("inf")},
    {"end": float("-inf")},
    {"start": 2.0, "end": 1.0},
    {"start": 1.0, "end": 1.0},
    {"start": 1e300},
    {"start": 1e12, "end": 1e13},
    {"start": "1:30"},
    {"start": True, "end": "x"},
    {"start": [1.0]},
    {"start": {"s": 1}},
]
THINGS = [
    None,
    5,
    1.5,
    [],
    ["a.mp4"],
    {},
    {"path": None, "bytes": None},
    {"bytes": b""},
    {"bytes": b"text"},
    {"path": 7},
    object(),
    b"",
    b"\0",
]
ROWS = [
    *({"video": {"path": name, "bytes": None}} for name in (*ADDRESSES, *NAMES)),
    *({"video": name} for name in ADDRESSES[:3]),
    *({"video": {"path": str(CLIP), "bytes": None}, **times} for times in TIMES),
    *({"video": thing} for thing in THINGS),
]


class Rows(list):
    """Rows as a dataset gives them, without the checks of loading: as a stream brings them."""

    column_names = ("video", "start", "end")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(video_sources, "CONNECTION_SECONDS", 2.0)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


def reading(**options):
    return VideoReading(access=VideoAccess(max_seconds=10), **options)


@pytest.mark.parametrize("row", ROWS, ids=[re.sub(r"0x\w+", "", ascii(row))[:60] for row in ROWS])
def test_a_hostile_row_is_refused(row, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = LVMAEConfig(image_size=32, patch_size=16, num_frames=4)
    clips = VideoClips(Rows([row]), processor_for(config), 4, reading=reading())
    began = time.monotonic()
    with pytest.raises(VideoReadError, match=r"(?i)got .*, expected ") as caught:
        clips[0]
    assert time.monotonic() - began < 10
    str(caught.value).encode("utf-8")
    assert os.listdir(tmp_path) == []


def test_training_goes_on_without_them(quick):
    """Among good rows, hostile ones are replaced and named; evaluation leaves them out."""
    config = LVMAEConfig(image_size=32, patch_size=16, num_frames=4)
    good = {"video": {"path": str(CLIP), "bytes": None}}
    rows = Rows([good, *ROWS[:3], *ROWS[-len(THINGS) - len(TIMES) :]])
    clips = VideoClips(
        rows, processor_for(config), 4, training=True, reading=reading(on_error="skip", max_broken_share=1.0)
    )
    clips.rows = Rows([good, ROWS[0]])
    for number in range(2):
        assert clips[number]["pixel_values_videos"].shape == (4, 3, 32, 32)
    evaluated = VideoClips(rows, processor_for(config), 4, reading=reading(on_error="skip", max_broken_share=1.0))
    assert [bool(evaluated[number]["is_readable"]) for number in range(len(rows))] == [True, *[False] * (len(rows) - 1)]
    views = VideoViews(rows, processor_for(config), 4, broken=evaluated.broken)
    assert [bool(views[number]["is_readable"]) for number in range(len(rows))] == [True, *[False] * (len(rows) - 1)]


def test_rows_of_a_confined_dataset_stay_inside(tmp_path, quick):
    """Absolute paths, parents, links and addresses; bytes in a row are inside."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "clip.mp4").write_bytes(CLIP.read_bytes())
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    (data / "link.mp4").symlink_to(tmp_path / "clip.mp4")
    (data / "folder").symlink_to(tmp_path)
    config = LVMAEConfig(image_size=32, patch_size=16, num_frames=4)
    confined = VideoReading(access=VideoAccess(folders=(str(data),)))
    inside = [str(data / "clip.mp4"), f"{data}/../data/clip.mp4", {"path": None, "bytes": CLIP.read_bytes()}]
    outside = [
        str(tmp_path / "clip.mp4"),
        f"{data}/../clip.mp4",
        str(data / "link.mp4"),
        str(data / "folder" / "clip.mp4"),
    ]
    outside += [
        f"{data}-2/clip.mp4",
        str(CLIP),
        "/etc/passwd",
        "http://127.0.0.1:9/clip.mp4",
        "s3://bucket/clip.mp4",
        "memory://clip.mp4",
    ]
    for video in inside:
        assert VideoClips(Rows([{"video": video}]), processor_for(config), 4, reading=confined)[0]
    for video in outside:
        with pytest.raises(VideoReadError, match=r"got (a file outside of|the protocol)"):
            VideoClips(Rows([{"video": video}]), processor_for(config), 4, reading=confined)[0]


def test_there_are_enough():
    assert len(ROWS) >= 60
