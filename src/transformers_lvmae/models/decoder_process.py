"""Decode videos in a process of their own, which can be killed.

FFmpeg is C code, and videos are files of strangers: a damaged one may make it hang or crash, and Python can stop neither. So FFmpeg
runs in a second process, which loads no torch, and which serves the thread that started it until
that thread ends. When the time of a video is over, the system's alarm ends the process, also inside C code; the next video gets a new
one. Frames come back through shared memory. Windows has no such alarm: there, videos are decoded in the calling process.

One video is one conversation. The caller sends what to open, and the process answers with the video's facts. The caller sends frame
numbers, and the process answers with blocks of frames. In between, the process may ask for bytes of a file object that the caller holds.
"""

import io
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from av.video.reformatter import VideoReformatter

from .credentials import mask_credentials
from .video_seeking import VideoReader, VideoReadError


# Frames are passed on in blocks of this size, because for small frames the calls cost most.
BLOCK_BYTES = 4 * 2**20
MOST_PIXELS = 2**27  # in a frame: four times as many as in 8K
GRACE_SECONDS = 5  # for a process that the alarm cannot end at once, because the system holds it
MOST_SECONDS = 1e6  # for a video; the system's clocks take no more than 2**31 ms
# For the caller, though a terminal or a cluster sends them to all processes of a job; the process ends when the caller is gone.
CALLERS_SIGNALS = (
    () if os.name == "nt" else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
)
# The process runs this module as part of a package without an `__init__`, because the real one loads torch.
START = """
import sys
folder, numbers, sys.path[:] = sys.argv[1], sys.argv[2:4], sys.argv[4:]
import types
package = sys.modules["reading"] = types.ModuleType("reading")
package.__path__ = [folder]
from reading.decoder_process import serve
serve(*map(int, numbers))
"""

Block = tuple[
    list[int], np.ndarray
]  # ascending frame numbers, and frames (N, H, W, 3), uint8 RGB, valid until the next block
FramesOf = Callable[[Sequence[int]], Iterator[Block]]


@dataclass(frozen=True)
class Opening:
    """What to open.

    Args:
        path: a file; None for a file object that the caller holds.
        folders: with these, the file must lie in one of them, also after links are followed.
        start, end: the segment, in seconds, as for [`VideoReader`].
        block_bytes: size of a block of frames; a larger frame is a block of its own.
    """

    path: str | None
    folders: tuple[str, ...] | None = None
    start: float | None = None
    end: float | None = None
    block_bytes: int = BLOCK_BYTES


@dataclass
class Facts:
    """What is known about an open video, as in [`VideoReader`]. `fault` is complete after the last frame."""

    total: int
    fps: float | None
    width: int
    height: int
    fault: str | None


class LocalFile(io.FileIO):
    """A file that is read without a buffer, because FFmpeg has its own.

    Args:
        folders: with these, the file must lie in one of them, also after links are followed.

    Raises:
        VideoReadError: a pipe, a device, a folder, or a file outside of `folders`.
    """

    def __init__(self, path: str, folders: tuple[str, ...] | None = None):
        real = Path(os.path.realpath(path))
        if folders is not None and not any(real.is_relative_to(os.path.realpath(folder)) for folder in folders):
            raise VideoReadError(
                f"got a file outside of {', '.join(folders)}, expected it there: move it, or do not confine the rows."
            )
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise VideoReadError("got a folder, a pipe or a device, expected a regular file: name the video's file.")
        super().__init__(descriptor, "rb")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As damaged files ask for places before the first byte: refuse with -1, as FFmpeg expects."""
        try:
            return super().seek(offset, whence)
        except OSError:
            return -1


def as_shown(pixels: np.ndarray, display_matrix: Any) -> np.ndarray:
    """Rotate and mirror pixels (H, W, 3) to the nearest quarter turn; return a view.

    Args:
        display_matrix: nine 32-bit integers (a b u; c d v; x y w), or None. It takes the direction to the right to (a, b), and the
            direction down to (c, d), in FFmpeg's definition.
    """
    if display_matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(display_matrix, np.int32)[:5].astype(np.int64)
    down, right = d, a
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, down, right = pixels.transpose(1, 0, 2), b, c
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


class FrameSource:
    """An open video: its facts, and its frames as players show them, with the display rotation.

    Args:
        errors: as for [`VideoReader`].
    """

    def __init__(self, opening: Opening, file: Any, errors: Sequence[tuple[int, str, str]] = ()):
        self.block_bytes = opening.block_bytes
        file = LocalFile(opening.path, opening.folders) if opening.path is not None else file
        if file.seek(0, os.SEEK_END) == 0:
            raise VideoReadError("got 0 bytes, expected a video file: download it again or remove it.")
        self.reader = reader = VideoReader(file, opening.start, opening.end, errors)
        self.facts = Facts(reader.total, reader.fps, reader.width, reader.height, reader.fault)

    def blocks(self, numbers: Sequence[int], room: Callable[[int], Any]) -> Iterator[Block]:
        """Yield the frames with these numbers, ascending, in blocks of one shape.

        Args:
            room: called with a number of bytes, returns a buffer of at least this size; each block is in the buffer of the last call.
        """
        # Build the converter once: for a small frame, building costs more than converting.
        converter = VideoReformatter()
        held: list[int] = []
        rotation, matrix = None, None
        block = np.empty((0, 0, 0, 3), np.uint8)
        for number, frame in self.reader.frames(numbers):
            if frame.width * frame.height > MOST_PIXELS:
                raise VideoReadError(
                    f"got frames of {frame.width} x {frame.height} pixels, expected fewer: scale it down."
                )
            picture = converter.reformat(frame, format="rgb24", threads=1)
            if frame.rotation != rotation:
                # A frame and its side data hold each other, so that both stay in memory: only read it where it may differ.
                rotation, matrix = frame.rotation, frame.side_data.get("DISPLAYMATRIX")
            plane = picture.planes[0]
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
                : picture.height, : 3 * picture.width
            ]
            pixels = as_shown(rows.reshape(picture.height, picture.width, 3), matrix)
            if len(held) == len(block) or pixels.shape != block.shape[1:]:
                if held:
                    yield held, block[: len(held)]
                shape = (max(1, self.block_bytes // pixels.nbytes), *pixels.shape)
                held, block = [], np.ndarray(shape, np.uint8, room(int(np.prod(shape))))
            block[len(held)] = pixels
            held.append(number)
        yield held, block[: len(held)]
        self.facts.fault = self.reader.fault


def fault_of(error: Exception) -> str:
    """Return what an error means for the video: whatever a decoder raises, the file cannot be read."""
    if isinstance(error, VideoReadError):
        return str(error)
    fault = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"got {fault}, expected a playable video file: re-encode or remove it."


def _map(memory: int, mapped: mmap.mmap | None, size: int) -> mmap.mmap:
    """Return a mapping of at least `size` bytes of the shared memory; `mapped` if that is large enough."""
    return mapped if mapped is not None and len(mapped) >= size else mmap.mmap(memory, size)


# In the process


class _CallersFile:
    """A file object that the caller holds. To read is to ask for its bytes."""

    def __init__(self, connection: Connection, size: int):
        self.connection, self.size, self.place = connection, size, 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self.place)
        self.connection.send(("read", self.place, left if size < 0 else min(size, left)))
        data = self.connection.recv_bytes()
        self.place += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def tell(self) -> int:
        return self.place


def serve(connection_number: int, memory: int) -> None:
    """Decode for the caller until it is gone. This is what the process runs."""
    for number in CALLERS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the caller may have it ignored or blocked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    av.logging.set_level(av.logging.ERROR)
    connection = Connection(connection_number)
    mapped: mmap.mmap | None = None

    def room(size: int) -> mmap.mmap:
        nonlocal mapped
        if os.fstat(memory).st_size < size:
            os.ftruncate(memory, size)
        mapped = _map(memory, mapped, size)
        return mapped

    while True:
        try:
            opening, size, max_seconds = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, max_seconds)
            with av.logging.Capture() as errors:
                source = FrameSource(Opening(*opening), _CallersFile(connection, size), errors)
                connection.send(("facts", asdict(source.facts)))
                for numbers, frames in source.blocks(connection.recv(), room):
                    connection.send(("block", numbers, frames.shape))
                    connection.recv()  # the caller has used the block
            last = "end", source.facts.fault
        except Exception as error:
            if isinstance(error, (EOFError, ConnectionError)) and not isinstance(error, av.FFmpegError):
                os._exit(0)  # the caller is gone
            last = "fault", fault_of(error)
        signal.setitimer(signal.ITIMER_REAL, 0)  # before the caller may send the next video
        connection.send(last)


# In the caller


def _end(connection: Connection, memory: int, process: subprocess.Popen, owner: int) -> None:
    connection.close()
    os.close(memory)
    if os.getpid() == owner:  # a forked copy of the caller leaves the process alone
        process.kill()
        process.wait()


class DecoderProcess:
    """A process that decodes for the thread that made it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.owner = os.getpid()
        self.memory = os.memfd_create("frames") if hasattr(os, "memfd_create") else _nameless_file()
        self.mapped: mmap.mmap | None = None
        numbers = theirs.fileno(), self.memory
        folder = os.path.dirname(os.path.abspath(__file__))
        command = [sys.executable, "-c", START, folder, *map(str, numbers), *filter(None, sys.path)]
        try:
            with theirs:
                self.process = subprocess.Popen(command, pass_fds=numbers, stdin=subprocess.DEVNULL)
        except (OSError, TypeError) as error:
            ours.close()
            os.close(self.memory)
            raise RuntimeError(
                f"Got {error} from starting {sys.executable!r}, expected a process that decodes: set sys.executable to Python's path, "
                "and see that the system can start one more process."
            ) from error
        self.connection = Connection(ours.detach())
        self.is_idle = True  # False in the middle of a conversation
        self.end = weakref.finalize(self, _end, self.connection, self.memory, self.process, self.owner)

    @property
    def can_begin(self) -> bool:
        """Whether a conversation can begin: the process is idle, alive, and no copy that a fork made."""
        return self.is_idle and self.end.alive and self.owner == os.getpid() and self.process.poll() is None

    def open(self, opening: Opening, file: Any, max_seconds: float) -> Facts:
        self.is_idle = False
        size = 0 if file is None else _size_of(file)
        (facts,) = self._ask((tuple(asdict(opening).values()), size, max_seconds), file, max_seconds)
        return Facts(**facts)

    def blocks(self, facts: Facts, numbers: Sequence[int], file: Any, max_seconds: float) -> Iterator[Block]:
        answer = self._ask(list(numbers), file, max_seconds)
        while not self.is_idle:
            held, shape = answer
            self.mapped = _map(self.memory, self.mapped, int(np.prod(shape)))
            yield held, np.ndarray(shape, np.uint8, self.mapped)
            answer = self._ask(None, file, max_seconds)
        (facts.fault,) = answer

    def _ask(self, message: Any, file: Any, max_seconds: float) -> list[Any]:
        """Send a message and return the answer. Until it comes, serve the bytes of `file` that the process asks for."""
        with suppress(ConnectionError):  # if the process died, `_receive` says how
            self.connection.send(message)
        while (answer := self._receive(max_seconds))[0] == "read":
            _, place, size = answer
            data = _bytes_of(file, place, size, max_seconds)
            with suppress(ConnectionError):
                self.connection.send_bytes(data)
        self.is_idle = answer[0] in ("end", "fault")
        if answer[0] == "fault":
            raise VideoReadError(answer[1])
        return list(answer[1:])

    def _receive(self, max_seconds: float) -> tuple[Any, ...]:
        try:
            if self.connection.poll(max_seconds + GRACE_SECONDS):
                return self.connection.recv()
        except (EOFError, ConnectionError):
            if (status := self.process.wait()) != -signal.SIGALRM:
                raise VideoReadError(
                    f"got a crash of the decoder (status {status}), expected frames: re-encode or remove it."
                ) from None
        raise VideoReadError(
            f"got no end of decoding within {max_seconds:g} s, expected one: remove it, or raise max_seconds."
        )


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each file system has its own errors
        fault = mask_credentials(f"{type(error).__name__}: {error}")
        raise VideoReadError(f"got {fault}, expected the bytes of the file: try again or remove it.") from None


def _size_of(file: Any) -> int:
    with _reading():
        return file.seek(0, os.SEEK_END)


def _bytes_of(file: Any, place: int, size: int, max_seconds: float) -> bytes:
    """Read in a thread, because a store that does not answer would hold the caller; bytes in memory need none."""

    def read() -> bytes:
        file.seek(place)
        return file.read(size)

    def settle() -> None:
        try:
            answer.set_result(read())
        except BaseException as error:
            answer.set_exception(error)

    with _reading():
        if isinstance(file, io.BytesIO):
            return read()
        answer: Future[bytes] = Future()
        threading.Thread(target=settle, daemon=True).start()
        try:
            return answer.result(max_seconds)
        except FutureTimeoutError:
            raise TimeoutError(f"no bytes within {max_seconds:g} s") from None


def _nameless_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_of_thread = threading.local()


@contextmanager
def opened_video(opening: Opening, file: Any, max_seconds: float) -> Iterator[tuple[Facts, FramesOf]]:
    """Open a video; yield its facts, and a function from ascending frame numbers to blocks of these frames.

    Args:
        file: a binary file object that can seek, if `opening` has no path.
        max_seconds: the video is given up when this time is over, whatever the decoder does.

    Raises:
        VideoReadError: the video cannot be opened or decoded, or not in time. The message does not name it.
    """
    if os.name == "nt":
        yield _open_here(opening, file)
        return
    max_seconds = min(max_seconds, MOST_SECONDS)
    process = getattr(_of_thread, "process", None)
    if process is None or not process.can_begin:
        process = _of_thread.process = DecoderProcess()
    try:
        facts = process.open(opening, file, max_seconds)
        yield facts, lambda numbers: process.blocks(facts, numbers, file, max_seconds)
    finally:
        if not process.is_idle:
            process.end()


def _open_here(opening: Opening, file: Any) -> tuple[Facts, FramesOf]:
    """Open a video in this process, without a limit of time."""
    try:
        source = FrameSource(opening, file)
    except Exception as error:
        raise VideoReadError(fault_of(error)) from error

    def blocks(numbers: Sequence[int]) -> Iterator[Block]:
        try:
            yield from source.blocks(numbers, bytearray)
        except Exception as error:
            raise VideoReadError(fault_of(error)) from error

    return source.facts, blocks
