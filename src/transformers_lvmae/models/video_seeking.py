"""Chosen frames of a video file for as little demuxing and decoding as its container allows, through PyAV.

Frames are numbered in the order in which they are shown.
- MP4, MOV, Matroska and WebM give every frame its own time stamp, so that a frame is known wherever reading begins. Decoding begins
  at the last keyframe before a wanted frame and goes on from there, or jumps to a later keyframe where that saves work.
- MP4 and MOV have an index of all frames, which counts them. It is believed once the file, read from the index's last keyframe on,
  ends where the index does: that of a fragmented file does not, nor that of a truncated one. In all other containers, the frames of a
  whole video are counted by demuxing it.
- Other containers (AVI, MPEG-TS, MPEG-PS, ...) make up time stamps while they read. They are decoded from the start, and so is a file
  with doubled time stamps, and one whose decoder does not come up with a frame after any of the last keyframes before it. That is
  exact, and the longer the later in the video a frame is.

No codec shows a frame before more than 16 frames that are stored ahead of it (the size of H.264's and HEVC's picture buffer). What comes
after 17 packets with later time stamps is therefore later itself, and the first frame shown is among the first 17 packets.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType


MAX_REORDER = 16
MOST_LANDINGS = 4
TIME_STAMPED = ("mp4", "matroska")  # parts of the names of FFmpeg's demuxers
TOLERANCE = 1e-6  # seconds


class VideoReadError(ValueError):
    """A video that cannot be read; the message names the file and its fault."""


class _CannotSeek(Exception):
    """A frame that only decoding from the start brings."""


@dataclass
class _Timeline:
    """What packets tell of the frames of a video, or of a stretch of it."""

    stamps: list[int | None] = field(default_factory=list)  # of shown frames, in the stream's time base
    keys: list[int] = field(default_factory=list)  # time stamps of the packets that decoding can begin at
    decoding_times: list[int | None] = field(default_factory=list)
    is_at_end: bool = True  # whether there are no more packets

    @classmethod
    def read(
        cls, packets: Iterable[av.Packet], is_behind: Callable[["_Timeline"], bool] = lambda timeline: False
    ) -> "_Timeline":
        """Of all packets up to the 17th that `is_behind` says lies behind the stretch, asked after each."""
        timeline, behind = cls(), 0
        for packet in packets:
            timeline._add(packet)
            behind += is_behind(timeline)
            if behind > MAX_REORDER:
                timeline.is_at_end = False
                break
        return timeline

    def _add(self, packet: av.Packet) -> None:
        self.decoding_times.append(packet.dts)
        if not packet.is_discard:
            self.stamps.append(packet.pts)
        if packet.is_keyframe and packet.pts is not None:
            self.keys.append(packet.pts)

    @property
    def is_stamped(self) -> bool:
        """Whether each frame has a time stamp of its own."""
        return bool(self.keys) and None not in self.stamps and len(set(self.stamps)) == len(self.stamps)

    @property
    def newest(self) -> int:
        return self.stamps[-1] or 0

    def sorted_stamps(self) -> np.ndarray:
        return np.sort(np.array([stamp or 0 for stamp in self.stamps], dtype=np.int64))


class VideoReader:
    """The frames of a file, or those of a segment of it.

    Args:
        file: a path or a file object that can seek.
        start, end: seconds from the first frame; a segment has the frames whose time stamp lies in [start, end).

    Attributes:
        total: number of frames, counted without decoding.
        fps: mean rate in frames a second, None where the container does not tell.
        width, height: in pixels.

    Raises:
        VideoReadError: no video stream, no decoder for it, fewer frames than an index promises, no frames in the segment.
    """

    def __init__(self, file: Any, start: float | None = None, end: float | None = None):
        self.file = file
        self.start, self.end = start, end
        self.is_whole = start is None and end is None
        self.total = 0
        self._skipped: int | None = 0  # frames of the file before our first one; None where nobody has counted them
        self._index: tuple[np.ndarray, np.ndarray] | None = None  # all frames' decoding times, and which are keyframes
        self._stamps: np.ndarray | None = None  # frames' time stamps, ascending, from number `_first` on
        self._first = 0
        self._keys = np.empty(0, np.int64)  # keyframes' time stamps, ascending
        with self._open() as (container, stream):
            self.fps = float(stream.average_rate) if stream.average_rate else None
            self.width, self.height = stream.width, stream.height
            self.time_base = float(stream.time_base)
            self._may_seek = any(name in container.format.name for name in TIME_STAMPED)
            if self._may_seek:
                with suppress(_CannotSeek):
                    (self._read_index if self.is_whole else self._read_segment)(container, stream)
        if not self.total:
            self._read_whole()

    def frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """(number, frame) for numbers in [0, total), ascending, each once; raises VideoReadError where the file is damaged."""
        wanted = sorted(set(numbers))
        found = 0
        with suppress(_CannotSeek):
            if self._seeking_pays(wanted):
                for number, frame in self._frames_by_jumps(wanted):
                    yield number, frame
                    found += 1
        if found < len(wanted):
            yield from self._frames_from_start(wanted[found:])

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        """The file from its first byte, as a container and its first video stream."""
        if hasattr(self.file, "seek"):
            self.file.seek(0)
        with av.open(self.file) as container:
            if not container.streams.video:
                raise VideoReadError("got a file without a video stream, expected one: re-encode or remove it.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoReadError(
                    "got a codec that FFmpeg has no decoder for, expected another: re-encode or remove it."
                )
            stream.codec_context.thread_count = 1  # parallelism comes from the data loader's workers
            yield container, stream

    def _read_whole(self) -> None:
        """Count by demuxing the file from end to end."""
        timeline = self._whole_timeline()
        stamps = timeline.sorted_stamps()
        self._may_seek &= timeline.is_stamped
        self._keys = np.sort(np.array(timeline.keys, dtype=np.int64))
        self._skipped = self._cut_out(stamps, stamps[0])

    def _whole_timeline(self) -> _Timeline:
        with self._open() as (container, stream):
            timeline = _Timeline.read(_packets(container, stream))
            packets, promised = len(timeline.decoding_times), len(stream.index_entries)
            # A file cut between two frames plays without a complaint. Only MP4 and MOV have an index that promises exactly.
            if "mp4" in container.format.name and packets < promised:
                raise VideoReadError(
                    f"got {packets} frames, expected {promised} by its index: it is truncated, download it again or remove it."
                )
        if not timeline.stamps:
            raise VideoReadError("got a video stream without frames, expected at least one: re-encode or remove it.")
        return timeline

    def _cut_out(self, stamps: np.ndarray, first_stamp: int) -> int:
        """Keep the time stamps that lie in the segment; how many lie before it."""
        seconds = (stamps - first_stamp) * self.time_base
        low = 0 if self.start is None else int(np.searchsorted(seconds, self.start - TOLERANCE))
        high = len(stamps) if self.end is None else int(np.searchsorted(seconds, self.end - TOLERANCE))
        if low >= high:
            raise VideoReadError(
                f"got a segment from {self.start} to {self.end} s, expected frames in it (the video lasts {seconds[-1]:.3f} s): "
                "correct the times."
            )
        self._stamps, self.total = stamps[low:high], high - low
        return low

    def _read_index(self, container: Any, stream: Any) -> None:
        """Count by the index, where there is one of all frames."""
        entries = list(stream.index_entries)
        keys = np.flatnonzero([entry.is_keyframe for entry in entries])
        if "mp4" not in container.format.name or not len(keys) or any(entry.is_discard for entry in entries):
            return
        times = [entry.timestamp for entry in entries]
        _seek(container, stream, times[keys[-1]])
        tail = _Timeline.read(_packets(container, stream)).decoding_times
        if tail and tail == times[-len(tail) :] and len(stream.index_entries) == len(times):
            self.total, self._index = len(times), (np.array(times), keys)

    def _read_segment(self, container: Any, stream: Any) -> None:
        """Count the segment's frames by demuxing from the keyframe before it to its end."""
        head = _Timeline.read(islice(_packets(container, stream), MAX_REORDER + 1))
        if not head.is_stamped:
            return
        first_stamp = int(head.sorted_stamps()[0])
        low = first_stamp if self.start is None else first_stamp + int(self.start / self.time_base)
        high = None if self.end is None else first_stamp + int(self.end / self.time_base) + 1
        key, packets = next(_packets_from_keys(container, stream, low), (None, iter(())))
        if key is None:
            return
        stretch = _Timeline.read(
            (packet for packet in chain([key], packets) if packet.size),
            lambda read: high is not None and bool(read.stamps) and read.newest >= high,
        )
        ends_early = stretch.is_at_end and "mp4" in container.format.name and not _ends_with_index(stretch, stream)
        if stretch.is_stamped and not ends_early:
            self._keys = np.array(stretch.keys)
            self._cut_out(stretch.sorted_stamps(), first_stamp)
            self._skipped = None

    def _seeking_pays(self, wanted: list[int]) -> bool:
        """Whether a jump saves more frames than a decoder holds back; finds the time stamps that jumps need."""
        if not self._may_seek or not self.is_whole:
            return self._may_seek
        keys = self._index[1] if self._index else np.searchsorted(self._stamps, self._keys)  # type: ignore[arg-type]
        before = keys[np.searchsorted(keys, wanted, side="right") - 1]
        if (before - np.array([0, *wanted[:-1]]) <= MAX_REORDER).all():
            return False
        return self._stamps is not None or self._stamp_stretch(wanted)

    def _stamp_stretch(self, wanted: list[int]) -> bool:
        """Find the time stamps from the first wanted frame to the last, of a file with an index; False where they cannot be told."""
        times, keys = self._index  # type: ignore[misc]

        def number(read: _Timeline) -> int:  # in storage order, of the packet that reading began at
            return int(np.searchsorted(times, read.decoding_times[0] or 0))

        with self._open() as (container, stream):
            for key in keys[keys <= wanted[0]][::-1]:
                _seek(container, stream, int(times[key]))
                stretch = _Timeline.read(
                    _packets(container, stream), lambda read: len(read.decoding_times) > wanted[-1] - number(read)
                )
                if not stretch.is_stamped or times[number(stretch)] != stretch.decoding_times[0]:
                    return False
                stamps = stretch.sorted_stamps()
                # Frames that are shown before the keyframe and stored after it come before it in our count.
                if number(stretch) + int(np.searchsorted(stamps, stretch.keys[0])) <= wanted[0]:
                    self._stamps, self._first, self._keys = stamps, number(stretch), np.array(stretch.keys)
                    return True
        return False

    def _frames_by_jumps(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        stamps: Any = self._stamps
        keys = self._first + np.searchsorted(stamps, self._keys)
        position = 0 if self.is_whole else -MAX_REORDER - 1  # number of the next frame to come
        with self._open() as (container, stream):
            frames = _decode(container.demux(stream))
            for number in wanted:
                stamp = int(stamps[number - self._first])
                frame = None
                if keys[np.searchsorted(keys, number, side="right") - 1] - position <= MAX_REORDER:
                    frame = _frame_at(frames, stamp)
                if frame is None:
                    frames, frame = _land(container, stream, stamp)
                yield number, frame
                position = number + 1

    def _frames_from_start(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        if self._skipped is None:
            self._skipped = int(np.searchsorted(self._whole_timeline().sorted_stamps(), self._stamps[0]))  # type: ignore[index]
        remaining = iter(wanted)
        number, sought = -self._skipped - 1, next(remaining, None)
        with self._open() as (container, stream):
            for number, frame in enumerate(container.decode(stream), start=-self._skipped):
                if number == sought:
                    yield number, frame
                    sought = next(remaining, None)
                    if sought is None:
                        return
        raise VideoReadError(
            f"got {self._skipped + number + 1} readable frames, expected at least {self._skipped + self.total} by its packets: "
            "it is damaged, re-encode or remove it."
        )


def _packets(container: Any, stream: Any) -> Iterator[av.Packet]:
    return (packet for packet in container.demux(stream) if packet.size)


def _seek(container: Any, stream: Any, stamp: int) -> None:
    """Go to a keyframe at or before a time stamp, as far as the container can tell."""
    try:
        container.seek(stamp, stream=stream)
    except av.FFmpegError:
        raise _CannotSeek from None


def _ends_with_index(stretch: _Timeline, stream: Any) -> bool:
    entries = stream.index_entries
    return len(entries) > 0 and entries[len(entries) - 1].timestamp == stretch.decoding_times[-1]


def _decode(packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    for packet in packets:
        yield from packet.decode()


def _frame_at(frames: Iterator[av.VideoFrame], stamp: int) -> av.VideoFrame | None:
    """The frame with this time stamp; None where another one, or none, comes in its place."""
    frame = next((frame for frame in frames if frame.pts is None or frame.pts >= stamp), None)
    return frame if frame is not None and frame.pts == stamp and not frame.is_corrupt else None


def _packets_from_keys(container: Any, stream: Any, stamp: int) -> Iterator[tuple[av.Packet, Iterator[av.Packet]]]:
    """A keyframe at or before a time stamp and the packets that follow it: for the last such keyframe, then for earlier ones."""
    target = stamp
    for _ in range(MOST_LANDINGS):
        _seek(container, stream, target)
        packets = container.demux(stream)
        key = next(packets)
        if key.pts is None:
            return
        if key.is_keyframe and key.pts <= stamp:
            yield key, packets
        target = min(key.pts if key.dts is None else key.dts, key.pts, target) - 1


def _land(container: Any, stream: Any, stamp: int) -> tuple[Iterator[av.VideoFrame], av.VideoFrame]:
    """Decode from a keyframe before a frame: the frames that follow it, and this one."""
    for key, packets in _packets_from_keys(container, stream, stamp):
        # What is shown before the keyframe and stored after it needs frames that were not decoded; nothing else needs it.
        leads: Any = key.pts
        follow = (packet for packet in packets if packet.pts is None or packet.pts > leads)
        frames = _decode(chain([key], follow))
        first = next(frames, None)
        # H.264 with periodic intra refresh marks frames as keyframes from which the picture only gradually becomes right.
        if first is not None and first.pts == key.pts and first.pict_type == PictureType.I:
            frame = _frame_at(chain([first], frames), stamp)
            if frame is not None:
                return frames, frame
    raise _CannotSeek
