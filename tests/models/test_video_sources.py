"""What a row's video may be, and what it may open."""

import io
import os
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
import torch
from builders import FIXTURES

from transformers_lvmae.models import video_sources
from transformers_lvmae.models.video_io import decode_video
from transformers_lvmae.models.video_seeking import VideoReadError
from transformers_lvmae.models.video_sources import VideoAccess, video_name


CLIP = FIXTURES / "odd" / "carphone.mp4"


def first_frame(source, **access):
    return decode_video(source, lambda metadata: [0], access=VideoAccess(**access))[0]


@pytest.fixture(scope="module")
def frame():
    return first_frame(CLIP)


# Paths


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
def test_only_regular_files_are_opened(kind, tmp_path):
    path = tmp_path / "clip.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = "/dev/zero"
    else:
        socket.socket(socket.AF_UNIX).bind(str(path))
    with pytest.raises(VideoReadError, match=r"got (a folder, a pipe or a device|No such device)"):
        first_frame(path)


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "file:clip.mp4", "tcp:1.mp4", "100%d.mp4", "-i.mp4", "l\nine.mp4", "café €.MP4", " .mp4"]
)
def test_a_path_is_a_path_whatever_its_name(name, frame, tmp_path, monkeypatch):
    """FFmpeg would take some of these for protocols or patterns."""
    (tmp_path / name).write_bytes(CLIP.read_bytes())
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        assert torch.equal(first_frame(path), frame)


def test_a_name_that_is_not_utf8(frame, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    with open(path, "wb") as file:
        file.write(CLIP.read_bytes())
    assert torch.equal(first_frame(path), frame)
    os.truncate(path, 0)
    with pytest.raises(VideoReadError, match="got 0 bytes") as caught:
        first_frame(path)
    str(caught.value).encode("utf-8")


def test_rows_can_be_confined_to_folders(frame, tmp_path):
    data, other = tmp_path / "data", tmp_path / "data-2"
    for folder in (data, other):
        folder.mkdir()
        (folder / "clip.mp4").write_bytes(CLIP.read_bytes())
    (data / "inside.mp4").symlink_to("clip.mp4")
    (data / "outside.mp4").symlink_to(other / "clip.mp4")
    (data / "up").symlink_to(tmp_path)
    confined = {"folders": (str(data),)}
    for path in (data / "clip.mp4", data / "inside.mp4", other / ".." / "data" / "clip.mp4"):
        assert torch.equal(first_frame(path, **confined), frame)
    outside = [
        data / "outside.mp4",
        data / "up" / "data-2" / "clip.mp4",
        data / ".." / "data-2" / "clip.mp4",
        other / "clip.mp4",
    ]
    for path in outside:
        assert torch.equal(first_frame(path), frame)
        with pytest.raises(VideoReadError, match=r"got a file outside of .*data, expected it there"):
            first_frame(path, **confined)
    with pytest.raises(VideoReadError, match=r"got the protocol 'https', expected a path in the data folder"):
        first_frame("https://example.org/clip.mp4", **confined)
    assert torch.equal(first_frame({"path": "x", "bytes": CLIP.read_bytes()}, **confined), frame)


def test_rows_can_be_confined_to_folders_for_torchcodec_too(tmp_path):
    """FFmpeg in this process gets no file from elsewhere either."""
    access = VideoAccess(folders=(str(tmp_path),))
    with pytest.raises(VideoReadError, match="got a file outside of"):
        decode_video(str(CLIP), lambda metadata: [0], backend="torchcodec", access=access)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{clip}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {clip}\n",
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period><AdaptationSet mimeType='video/mp4'>"
        "<Representation id='1' bandwidth='1'><BaseURL>{clip}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
    ids=["hls", "concat", "dash", "sdp"],
)
@pytest.mark.parametrize("ending", ["mp4", "m3u8", "ffconcat", "mpd", "sdp"])
def test_a_playlist_opens_nothing(text, ending, tmp_path):
    """Not even a good video beside it."""
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    for name in ("clip.mp4", tmp_path / "clip.mp4", f"file:{tmp_path / 'clip.mp4'}"):
        (tmp_path / f"list.{ending}").write_text(text.format(clip=name))
        with pytest.raises(VideoReadError):
            first_frame(tmp_path / f"list.{ending}", max_seconds=5)


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        "rtmp://host/live",
        "tcp://host:1",
        "ftp://host/a.mp4",
        "file:///a.mp4",
        "sftp://h/a.mp4",
        "zip://a.mp4::ftp://h/b.zip",
        "zip://a.mp4::/data/b.zip",
        "x://",
    ],
)
def test_other_protocols_need_a_word(address):
    with pytest.raises(
        VideoReadError, match=r"got the protocol '\w+', expected a path or one of http, https, .*: download it"
    ):
        first_frame(address)


def test_a_protocol_can_be_allowed(frame, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    assert torch.equal(first_frame(f"file://{tmp_path}/clip.mp4", protocols=("file",)), frame)


def test_file_systems(frame, tmp_path):
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("part/clip.mp4", CLIP.read_bytes())
    fsspec.filesystem("memory").pipe("/hub/clip.mp4", CLIP.read_bytes())
    fsspec.filesystem("memory").pipe("/hub/clips.zip", (tmp_path / "clips.zip").read_bytes())
    for address in ("memory://hub/clip.mp4", "zip://part/clip.mp4::memory://hub/clips.zip"):
        assert torch.equal(first_frame(address), frame)
    with pytest.raises(VideoReadError, match=r"memory://hub/none\.mp4: got FileNotFoundError"):
        first_frame("memory://hub/none.mp4")


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        self.send_response(302 if name in ("loop", "away") else 404 if name == "none" else 200)
        if name == "loop":
            self.send_header("Location", "/loop")
        if name == "away":
            self.send_header("Location", "/clip.mp4")
        self.end_headers()
        try:
            while name == "endless":
                self.wfile.write(b"0" * 65536)
            while name == "slow":
                self.wfile.write(b"0")
                threading.Event().wait(0.02)
        except OSError:  # the reader has gone
            return
        if name == "clip.mp4":
            self.wfile.write(CLIP.read_bytes())

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_downloads(site, frame):
    for name in ("clip.mp4", "away"):
        assert torch.equal(first_frame(f"{site}/{name}"), frame)
    for name, fault in (("none", "404"), ("loop", "more than 10 redirects"), ("empty", "got 0 bytes")):
        with pytest.raises(VideoReadError, match=fault):
            first_frame(f"{site}/{name}")
    with pytest.raises(VideoReadError, match="expected a video at this address"):
        first_frame("http://[broken")


def test_downloads_have_limits(site):
    with pytest.raises(VideoReadError, match=r"got more than 100000 bytes, expected fewer: raise max_bytes"):
        first_frame(f"{site}/endless", max_bytes=100_000)
    with pytest.raises(VideoReadError, match=r"got no end of the download within 0\.3 s"):
        first_frame(f"{site}/slow", max_seconds=0.3)


def test_a_file_inside_of_a_web_address_would_have_no_limits(site):
    with pytest.raises(VideoReadError, match="got a file inside of a web address, expected an address of its own"):
        first_frame(f"zip://clip.mp4::{site}/away")


def test_a_public_address_does_not_lead_to_a_local_one(site, monkeypatch):
    """The first address is taken for public; where it redirects to is local."""
    judged = []

    def is_local(url):
        judged.append(url)
        return len(judged) > 1

    monkeypatch.setattr(video_sources, "_is_local", is_local)
    with pytest.raises(VideoReadError, match="got a redirect to a local address, expected a public one"):
        first_frame(f"{site}/away")
    assert judged == [f"{site}/away", f"{site}/clip.mp4"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.8", "169.254.169.254", "[::1]", "[fe80::1]", "localhost", "0.0.0.0", "192.168.1.1"]
)
def test_local_addresses_are_known(host):
    assert video_sources._is_local(f"http://{host}:80/clip.mp4")


def test_public_addresses_are_known():
    assert not video_sources._is_local("http://1.1.1.1/clip.mp4")
    assert not video_sources._is_local("http://no-such-host.invalid/clip.mp4")


@pytest.mark.parametrize(
    "limit", [{"max_bytes": 0}, {"max_seconds": -1}, {"max_seconds": float("nan")}, {"max_seconds": float("inf")}]
)
def test_limits_must_be_numbers_above_zero(limit):
    with pytest.raises(ValueError, match=r"Got max_\w+=.*, expected more than 0"):
        VideoAccess(**limit)


def test_names_for_messages():
    assert video_name({"path": None, "bytes": b"abc"}) == "<3 bytes, CRC-32 352441c2>"
    assert video_name(io.BytesIO()) == "<BytesIO>"
    assert video_name({"path": "a.mp4", "bytes": b""}) == "a.mp4"
