"""Read chosen frames of a video file through PyAV, with as little demuxing and decoding as the container allows.

Frames are numbered in the order in which they are shown.
- In MP4, MOV, Matroska and WebM, every frame has its own time stamp, which identifies it wherever reading begins. Decoding begins
  at the last keyframe before a wanted frame. It goes on from there, or jumps to a later keyframe if that saves work.
- MP4 and MOV have an index of all frames, which gives their number. It is trusted if the file, read from the last keyframe of the
  index on, ends where the index ends; in a fragmented or truncated file it does not. In all other containers, the frames of a whole
  video are counted by demuxing it.
- In other containers (AVI, MPEG-TS, MPEG-PS, ...), time stamps are computed while the file is read. They are decoded from the
  start. So are files in which two frames have the same time stamp, and files in which decoding from the last few keyframes before a
  frame does not return it. This is exact, but takes longer for later frames.

A codec stores at most 16 frames ahead of a frame that is shown before them (the size of the picture buffer of H.264 and HEVC). So
after 17 packets with later time stamps, all other packets are later too, and the first frame shown is among the first 17 packets.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.frame import PictureType


MAX_REORDER = 16
MOST_LANDINGS = 4
TIME_STAMPED = ("mp4", "matroska")  # parts of the names of FFmpeg's demuxers
TOLERANCE = 1e-6  # seconds
HARMLESS = "mmco: "  # the start of a message about references that lie before a keyframe, after a jump to it
TRANSPORT_PACKETS = (188, 192, 204)  # bytes of a packet of MPEG-TS, without and with a time code or a checksum


class VideoReadError(ValueError):
    """A video cannot be read; the message names the file and the fault."""


class _CannotSeek(Exception):
    """A frame can only be found by decoding from the start."""


@dataclass
class _Timeline:
    """The times of the frames of a video, or of a part of it, as its packets give them; in the stream's time base."""

    stamps: list[int | None] = field(default_factory=list)  # when frames are shown, in storage order
    keys: list[int] = field(default_factory=list)  # when keyframes are shown; decoding can begin at them
    decoding_times: list[int | None] = field(default_factory=list)
    is_at_end: bool = True  # True if the file had no more packets

    @classmethod
    def read(
        cls, packets: Iterable[av.Packet], is_behind: Callable[["_Timeline"], bool] = lambda timeline: False
    ) -> "_Timeline":
        """Read packets until 17 of them lie behind the part that is wanted: that covers reordering.

        Args:
            is_behind: called after each packet with the timeline so far; returns whether this packet lies behind the part.
        """
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
        """Whether there are frames, and each has its own time stamp."""
        return bool(self.keys and self.stamps) and None not in self.stamps and len(set(self.stamps)) == len(self.stamps)

    @property
    def newest(self) -> int:
        return self.stamps[-1] or 0

    def sorted_stamps(self) -> np.ndarray:
        return np.sort(np.array([stamp or 0 for stamp in self.stamps], dtype=np.int64))


class VideoReader:
    """Reads frames of a file, or of a segment of it.

    Args:
        file: a binary file object that can seek.
        start, end: seconds from the first frame; a segment has the frames whose time stamps lie in [start, end).
        errors: FFmpeg's messages (level, part of FFmpeg, text) of level error, a list that grows while it reads
            (`av.logging.Capture`). A jump after which FFmpeg complains is done again from the start of the file.

    Attributes:
        total: number of frames, counted without decoding.
        fps: mean number of frames per second: the container's, or that of the time stamps if these say something else, as with a
            variable frame rate. None if neither is known.
        width, height: in pixels, as stored: before the display rotation.
        fault: why the video seems to be truncated or damaged though its frames play, or None; complete after the last frame.

    Raises:
        VideoReadError: no video stream, no decoder for it, fewer frames than an index promises, no frames in the segment.
    """

    def __init__(
        self,
        file: Any,
        start: float | None = None,
        end: float | None = None,
        errors: Sequence[tuple[int, str, str]] = (),
    ):
        self.file = file
        self.errors = errors
        self.start, self.end = start, end
        self.is_whole = start is None and end is None
        self.total = 0
        self.fault: str | None = None
        self._skipped: int | None = 0  # number of frames before the segment; None if they were not counted
        self._index: tuple[np.ndarray, np.ndarray] | None = None  # decoding times of all frames; numbers of keyframes
        self._is_stamped = False  # whether all of `_stamps` are true
        self._stamps: np.ndarray | None = None  # time stamps of the frames from number `_first` on, ascending
        self._first = 0
        self._keys = np.empty(0, np.int64)  # time stamps of keyframes, ascending
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
        """Yield (number, frame) for numbers in [0, total), ascending, each once; raises VideoReadError on damaged files."""
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
        """Open the file at its first byte; yield the container and its first video stream."""
        self.file.seek(0)
        # The bytes come from `file` alone: playlists and other containers that name files or addresses cannot open them.
        with av.open(self.file, metadata_errors="replace", options={"protocol_whitelist": "none"}) as container:
            streams = [
                stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic
            ]
            if not streams:
                raise VideoReadError("got a file without a video stream, expected one: re-encode or remove it.")
            stream = streams[0]
            if stream.codec_context is None:
                raise VideoReadError("got a codec without an FFmpeg decoder, expected another: re-encode or remove it.")
            stream.codec_context.thread_count = 1  # parallelism comes from the data loader's workers
            yield container, stream

    def _read_whole(self) -> None:
        """Count the frames by demuxing the whole file."""
        timeline = self._whole_timeline()
        stamps = timeline.sorted_stamps()
        self._is_stamped = timeline.is_stamped
        self._may_seek &= timeline.is_stamped
        self._keys = np.sort(np.array(timeline.keys, dtype=np.int64))
        self._skipped = self._cut_out(stamps, stamps[0])

    def _whole_timeline(self) -> _Timeline:
        with self._open() as (container, stream):
            passage = _Passage()
            timeline = _Timeline.read(passage.packets(container, stream))
            self.fault = passage.fault(container, stream)
            if passage.goes_back and not self.is_whole:
                raise VideoReadError(
                    "got time stamps that go back, expected ascending ones for a segment: re-encode it."
                )
            packets, promised = len(timeline.decoding_times), len(stream.index_entries)
            # A file that was cut between two frames plays without an error. Only the index of MP4 and MOV shows the loss.
            if "mp4" in container.format.name and packets < promised:
                raise VideoReadError(
                    f"got {packets} frames, expected {promised} by its index: it is truncated, download it again or remove it."
                )
        if not timeline.stamps:
            raise VideoReadError("got a video stream without frames, expected at least one: re-encode or remove it.")
        return timeline

    def _cut_out(self, stamps: np.ndarray, first_stamp: int) -> int:
        """Keep the time stamps that lie in the segment; return how many lie before it."""
        seconds = (stamps - first_stamp) * self.time_base
        low = 0 if self.start is None else int(np.searchsorted(seconds, self.start - TOLERANCE))
        high = len(stamps) if self.end is None else int(np.searchsorted(seconds, self.end - TOLERANCE))
        if low >= high:
            raise VideoReadError(
                f"got a segment from {self.start} to {self.end} s, expected frames in it (it has {seconds[-1]:.3f} s): correct it."
            )
        self._stamps, self.total = stamps[low:high], high - low
        self._correct_rate()
        return low

    def _correct_rate(self) -> None:
        """Take the frame rate from the time stamps if it differs by more than 1 % from the container's."""
        seconds = float(self._stamps[-1] - self._stamps[0]) * self.time_base  # type: ignore[index]
        promised = (self.total - 1) / self.fps if self.fps else math.inf
        if seconds > 0 and abs(seconds - promised) > 0.01 * seconds + 1.5 * self.time_base:
            self.fps = (self.total - 1) / seconds

    def _read_index(self, container: Any, stream: Any) -> None:
        """Count the frames by the index, if it has all of them."""
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
        """Count the frames of the segment by demuxing from the keyframe before it to its end."""
        # An edit list may hide the first frames. Reading goes on to those that are shown.
        head = _Timeline.read(_packets(container, stream), lambda read: bool(read.stamps))
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
        is_complete = _ends_with_index if "mp4" in container.format.name else _ends_as_declared
        ends_early = stretch.is_at_end and not is_complete(stretch, container, stream)
        if stretch.is_stamped and not ends_early:
            self._keys = np.array(stretch.keys)
            self._cut_out(stretch.sorted_stamps(), first_stamp)
            self._skipped = None

    def _seeking_pays(self, wanted: list[int]) -> bool:
        """Return whether jumps skip more than the 16 frames of a decoder's buffer; find the time stamps that jumps need."""
        if not self._may_seek or not self.is_whole:
            return self._may_seek
        keys = self._index[1] if self._index else np.searchsorted(self._stamps, self._keys)  # type: ignore[arg-type]
        before = keys[np.searchsorted(keys, wanted, side="right") - 1]
        if (before - np.array([0, *wanted[:-1]]) <= MAX_REORDER).all():
            return False
        return self._stamps is not None or self._stamp_stretch(wanted)

    def _stamp_stretch(self, wanted: list[int]) -> bool:
        """Find the time stamps from the first to the last wanted frame of a file with an index; return whether that worked."""
        times, keys = self._index  # type: ignore[misc]

        def number(read: _Timeline) -> int:  # number of the first packet that was read, in storage order
            return int(np.searchsorted(times, read.decoding_times[0] or 0))

        with self._open() as (container, stream):
            for key in keys[keys <= wanted[0]][::-1]:
                _seek(container, stream, int(times[key]))
                packets = _packets(container, stream)
                stretch = _Timeline.read(packets, lambda read: len(read.decoding_times) > wanted[-1] - number(read))
                if not stretch.is_stamped or times[number(stretch)] != stretch.decoding_times[0]:
                    return False
                stamps = stretch.sorted_stamps()
                # Frames that are stored after the keyframe but shown before it are counted before it.
                if number(stretch) + int(np.searchsorted(stamps, stretch.keys[0])) <= wanted[0]:
                    self._stamps, self._first, self._keys = stamps, number(stretch), np.array(stretch.keys)
                    return True
        return False

    def _frames_by_jumps(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        stamps: Any = self._stamps
        keys = self._first + np.searchsorted(stamps, self._keys)
        position = 0 if self.is_whole else -MAX_REORDER - 1  # number of the next frame that the decoder returns
        known = len(self.errors)
        with self._open() as (container, stream):
            frames = _decode(container.demux(stream))
            for number in wanted:
                stamp = int(stamps[number - self._first])
                frame = None
                if keys[np.searchsorted(keys, number, side="right") - 1] - position <= MAX_REORDER:
                    frame = _frame_at(frames, stamp)
                if frame is None:
                    frames, frame = _land(container, stream, stamp)
                if self._new_error(known):
                    raise _CannotSeek
                yield number, frame
                position = number + 1

    def _frames_from_start(self, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        if self._skipped is None:
            self._skipped = int(np.searchsorted(self._whole_timeline().sorted_stamps(), self._stamps[0]))  # type: ignore[index]
        remaining, known = iter(wanted), len(self.errors)
        number, sought = -self._skipped - 1, next(remaining, None)
        with self._open() as (container, stream):
            for number, frame in enumerate(container.decode(stream), start=-self._skipped):
                if number == sought:
                    self._note_damage(number, frame, known)
                    yield number, frame
                    sought = next(remaining, None)
                    if sought is None:
                        return
        raise VideoReadError(
            f"got {self._skipped + number + 1} readable frames, expected at least {self._skipped + self.total} by its packets: "
            "it is damaged, re-encode or remove it."
        )

    def _new_error(self, known: int) -> str | None:
        """Return the first message of FFmpeg after the `known` ones that tells of damage."""
        return next((text for _, _, text in self.errors[known:] if not text.startswith(HARMLESS)), None)

    def _note_damage(self, number: int, frame: av.VideoFrame, known: int) -> None:
        error = self._new_error(known)
        if self.fault is None and error:
            self.fault = f"got FFmpeg's error {error.strip()!r}, expected none"
        is_another = self._is_stamped and frame.pts is not None and frame.pts != self._stamps[number]  # type: ignore[index]
        if self.fault is None and is_another:
            self.fault = f"got frame {number} at another time than its packet's, expected the same: frames are missing"


def _packets(container: Any, stream: Any) -> Iterator[av.Packet]:
    return (packet for packet in container.demux(stream) if packet.size)


@dataclass
class _Passage:
    """What a passage through all packets of a file shows about its completeness."""

    end: float = 0.0  # the last time, in seconds, that a packet of any stream reaches
    is_damaged: bool = False  # True if a packet is incomplete
    goes_back: bool = False  # True if a frame is to be decoded earlier than the one stored before it

    def packets(self, container: Any, stream: Any) -> Iterator[av.Packet]:
        """Yield the packets of a stream, and note what the packets of all streams show."""
        previous = None
        for packet in container.demux():
            if packet.size:
                self.is_damaged |= packet.is_corrupt
                if packet.pts is not None:
                    self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index == stream.index:
                    self.goes_back |= None not in (previous, packet.dts) and packet.dts < previous
                    previous = packet.dts
                    yield packet

    def fault(self, container: Any, stream: Any) -> str | None:
        """Return why the file seems to be truncated, or None. A file that was cut between two packets may show nothing."""
        format_name, size = container.format.name, container.size
        declared, begin = (container.duration or 0) / av.time_base, (container.start_time or 0) / av.time_base
        if "matroska" in format_name:
            begin = 0.0  # it counts from zero, and not from the first frame
        if (
            "avi" in format_name and stream.average_rate
        ):  # FFmpeg shortens the duration by the size, but not the number of frames
            declared = float(stream.frames / stream.average_rate)
        played = self.end - begin
        if _is_shorter(played, declared):
            return f"got {played:.1f} s, expected {declared:.1f} s by its header"
        if self.is_damaged:
            return "got an incomplete packet, expected none"
        if self.goes_back:
            return "got time stamps that go back, expected ascending ones"
        if "asf" in format_name and container.duration is None:  # FFmpeg drops the duration if the size is wrong
            return f"got {size} bytes, expected another size by its header"
        if "mpegts" in format_name and all(size % packet for packet in TRANSPORT_PACKETS):
            return f"got {size} bytes, expected whole packets of {TRANSPORT_PACKETS[0]} bytes"
        return None


def _seek(container: Any, stream: Any, stamp: int) -> None:
    """Go to a keyframe at or before a time stamp. Some containers end up elsewhere, so callers check the place."""
    try:
        container.seek(stamp, stream=stream)
    except av.FFmpegError:
        raise _CannotSeek from None


def _ends_with_index(stretch: _Timeline, container: Any, stream: Any) -> bool:
    entries = stream.index_entries
    return len(entries) > 0 and entries[len(entries) - 1].timestamp == stretch.decoding_times[-1]


def _ends_as_declared(stretch: _Timeline, container: Any, stream: Any) -> bool:
    """Return whether a stretch of Matroska reaches the end that the header declares. Another stream may be longer, too."""
    end = max((stamp or 0 for stamp in stretch.stamps), default=0) * stream.time_base
    return not _is_shorter(float(end), (container.duration or 0) / av.time_base)


def _is_shorter(played: float, declared: float) -> bool:
    """Return whether a video plays clearly shorter, in seconds, than its header declares."""
    return declared - played > max(0.5, 0.01 * declared)


def _decode(packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    for packet in packets:
        yield from packet.decode()


def _frame_at(frames: Iterator[av.VideoFrame], stamp: int) -> av.VideoFrame | None:
    """Return the frame with this time stamp, or None if the decoder does not return it."""
    frame = next((frame for frame in frames if frame.pts is None or frame.pts >= stamp), None)
    return frame if frame is not None and frame.pts == stamp and not frame.is_corrupt else None


def _packets_from_keys(container: Any, stream: Any, stamp: int) -> Iterator[tuple[av.Packet, Iterator[av.Packet]]]:
    """Yield keyframes at or before a time stamp, the last one first, each with the packets that follow it."""
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
    """Decode from a keyframe before the frame with this time stamp; return the frames that follow it, and this frame."""
    for key, packets in _packets_from_keys(container, stream, stamp):
        # Skip frames that are stored after the keyframe but shown before it: they need frames that were not decoded.
        leads: Any = key.pts
        follow = (packet for packet in packets if packet.pts is None or packet.pts > leads)
        frames = _decode(chain([key], follow))
        first = next(frames, None)
        # With periodic intra refresh, H.264 marks frames as keyframes after which the picture is complete only gradually.
        if first is not None and first.pts == key.pts and first.pict_type == PictureType.I:
            frame = _frame_at(chain([first], frames), stamp)
            if frame is not None:
                return frames, frame
    raise _CannotSeek
