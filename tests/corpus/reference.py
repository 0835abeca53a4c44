"""Decode videos in the most straightforward way, for comparison: open, decode from the start, rotate as the frame says.

    python tests/corpus/reference.py < PATHS

For each path on standard input, a line of JSON: the frames' time stamps in seconds from the first one, a digest of each frame's pixels,
and the error that ended the decoding, or null. A digest is null if decoding the file again, into other memory, shows another picture:
decoders leave parts of a damaged frame as the memory was. A file may hang or crash the decoder, so the caller runs this in a process of its own.
"""

import hashlib
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import av
import numpy as np


PATIENCE = 30  # seconds for a file


def digest(pixels: np.ndarray) -> str:
    """A digest of pixels (H, W, 3) and their shape."""
    return hashlib.sha1(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def as_shown(frame: av.VideoFrame) -> np.ndarray:
    """Move each pixel to where the display matrix takes it."""
    pixels, matrix = frame.to_ndarray(format="rgb24"), frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d, *_ = np.round(np.frombuffer(matrix, np.int32) / 2**16).astype(int)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    right, down = a * x + c * y, b * x + d * y
    right, down = right - right.min(), down - down.min()
    shown = np.zeros((down.max() + 1, right.max() + 1, 3), np.uint8)
    shown[down, right] = pixels
    return shown


def decode(path: str, held: int = 0) -> dict[str, Any]:
    """Decode a file; keep the last `held` frames, so that the decoder writes into other memory."""
    kept: deque = deque(maxlen=held)
    seconds: list[float | None] = []
    digests: list[str] = []
    error, origin = None, None
    try:
        with av.open(path, metadata_errors="ignore") as container:
            stream = next(
                stream
                for stream in container.streams.video
                if not stream.disposition & av.stream.Disposition.attached_pic
            )
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                kept.append(frame)
                origin = frame.pts if origin is None else origin
                seconds.append(
                    None if frame.pts is None or origin is None else float((frame.pts - origin) * stream.time_base)
                )
                digests.append(digest(as_shown(frame)))
    except Exception as fault:
        error = f"{type(fault).__name__}: {fault}"
    return {"seconds": seconds, "digests": digests, "error": error}


def decode_all(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Decode files in a second process; None for a file that hangs or crashes the decoder."""
    process: Any = None
    answers: Queue = Queue()
    for path in paths:
        if process is None:
            command = [sys.executable, __file__]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            answers = Queue()
            Thread(target=_collect, args=(process.stdout, answers), daemon=True).start()
        try:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            answer = answers.get(timeout=PATIENCE)
        except (Empty, OSError):
            answer = None
        if answer is None:
            process.kill()
            process = None
        yield path, answer
    if process is not None:
        process.stdin.close()
        process.wait()


def _collect(lines: Iterable[str], answers: Queue) -> None:
    for line in lines:
        answers.put(json.loads(line))
    answers.put(None)


if __name__ == "__main__":
    for line in sys.stdin:
        first, *others = (decode(line.rstrip("\n"), held) for held in (0, 1, 3, 10_000))
        passes = [first["digests"], *(other["digests"] for other in others)]
        first["digests"] = [shown[0] if len(set(shown)) == 1 else None for shown in zip(*passes)]
        print(json.dumps(first), flush=True)
