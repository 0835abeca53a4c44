"""Draw the digits demo sets: a hand-written digit on a moving background, as H.264 files.

    python examples/make_digits.py data/digits-motion --task motion
    python examples/make_digits.py data/digits-flash --task flash --train 1200 --test 360
    python examples/make_digits.py data/digits-grain --task motion --nuisance grain
    python examples/make_digits.py data/digits-long --task flash --num_frames 512 --event_length 1
    load_dataset("videofolder", data_dir="data/digits-motion")

The class of a clip is
motion: how the digit moves (8 classes); a few frames show it.
flash:  how often the digit turns white for 2 frames (--event_length), 0 to 5 times at random moments.
hop:    how often the digit hops away for 2 frames and comes back, 0 to 5 times.

A nuisance changes many pixels without information on the class. Everything else is as in the set without it:
grain:   a quarter of the picture is noise, new in each frame, behind digit and distractors.
flicker: the whole picture gets brighter and darker from frame to frame.
camera:  the whole picture trembles.

Notable choices:
- Nothing but the motion or the events depends on the class. Digit, colour, place, size, background and distractors have the same
  distribution in every class. Places wrap around the picture's edges, so that every place is equally likely in every frame, and
  every digit has a size that a pulsing one could have.
- 32 of 128 frames show an event with probability 1/2, so they do not determine the count. `observer_ceiling` computes how often
  the best possible observer is right, and the script prints it.
- The three splits show different images of digits.
"""

import argparse
import collections
import colorsys
import functools
import json
from dataclasses import dataclass

import numpy as np
from demo_data import SPLITS, clip_generator, write_videofolder
from sklearn.datasets import load_digits


MOTIONS = ("left", "right", "up", "down", "clockwise", "counter_clockwise", "pulse", "shake")
HEADINGS = {"left": np.pi, "right": 0.0, "up": -np.pi / 2, "down": np.pi / 2}  # angle from x to y, y pointing down
MAX_EVENTS = 5
CLASSES = {
    "motion": MOTIONS,
    "flash": tuple(f"flashes_{count}" for count in range(MAX_EVENTS + 1)),
    "hop": tuple(f"hops_{count}" for count in range(MAX_EVENTS + 1)),
}
EVENT_LENGTH = 2  # frames, if not said otherwise
EVENT_SPACING = 6  # smallest number of frames from one event's start to the next one's
EVENT_MARGIN = 4  # frames before the first and after the last event
NUISANCES = ("grain", "flicker", "camera")
GRAIN, FLICKER = 0.25, 0.12  # largest change of a pixel, as a share of its range
TREMBLE = 2  # largest shift of a picture of 64 pixels, in pixels
GLYPH_SCALE = 16  # samples per pixel of scikit-learn's 8 x 8 images
VERSION = 2  # part of the set's arguments: raise it when the same arguments draw other pixels


@dataclass(frozen=True)
class Path:
    """The digit's place and look in each of T frames."""

    centre: np.ndarray  # (T, 2), x and y in pixels, unbounded: the picture wraps around
    size: np.ndarray  # (T,), height in pixels
    white: np.ndarray  # (T,), bool


@dataclass(frozen=True)
class DigitScene:
    """One clip of a digits set, a function of (task, sizes, seed, split, index) alone."""

    task: str
    image_size: int
    num_frames: int
    seed: int
    split_number: int
    index: int
    nuisance: str | None = None
    event_length: int = EVENT_LENGTH

    @functools.cached_property
    def label(self) -> int:
        """Class number; the classes take turns, so every prefix of a split is balanced."""
        return self.index % len(CLASSES[self.task])

    @functools.cached_property
    def image_number(self) -> int:
        numbers = np.arange(self.split_number, len(digit_images()[1]), len(SPLITS))
        return int(self._generator(0).choice(numbers))

    @functools.cached_property
    def ground_velocity(self) -> np.ndarray:
        """x and y in pixels per frame; rounded because the metadata holds it."""
        return np.round(velocity(self._generator(1), 0.004, 0.008) * self.image_size, 3)

    @functools.cached_property
    def event_starts(self) -> list[int]:
        if self.task == "motion":
            return []
        starts = draw_event_starts(self.label, self.num_frames, self._generator(2), self.event_length)
        return starts.tolist()

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """The clip's row in `metadata.csv`."""
        events = {} if self.task == "motion" else {"count": self.label, "event_starts": json.dumps(self.event_starts)}
        ground_x, ground_y = self.ground_velocity.tolist()
        return {
            "label": CLASSES[self.task][self.label],
            "digit": int(digit_images()[1][self.image_number]),
            "digit_image": self.image_number,
            **events,
            "ground_x": ground_x,
            "ground_y": ground_y,
        }

    def render(self) -> np.ndarray:
        """uint8 frames (num_frames, image_size, image_size, 3)."""
        rng = self._generator(3)
        frames = draw_ground(rng, self.image_size, self.num_frames, self.ground_velocity)
        if self.nuisance == "grain":
            add_grain(self._generator(4), frames)
        for _ in range(4):
            draw_distractor(rng, frames)
        path = self._path(rng)
        colour = np.where(path.white[:, None], 1.0, bright_colour(rng, 0.8))
        glyph = digit_images()[0][self.image_number]
        paste(frames, path.centre, colour, glyph, path.size, tilt=rng.uniform(-0.2, 0.2))
        if self.nuisance == "flicker":
            lift = self._generator(4).uniform(-FLICKER, FLICKER, (self.num_frames, 1, 1, 1))
            frames = (frames + lift).clip(0, 1)
        if self.nuisance == "camera":
            frames = tremble(self._generator(4), frames)
        return np.rint(frames * 255).astype(np.uint8)

    def _generator(self, stream: int) -> np.random.Generator:
        return clip_generator(self.seed, self.split_number, self.index, stream)

    def _path(self, rng: np.random.Generator) -> Path:
        if self.task == "motion":
            return motion_path(MOTIONS[self.label], self.image_size, self.num_frames, rng)
        events = [slice(start, start + self.event_length) for start in self.event_starts]
        return event_path(self.task, events, self.image_size, self.num_frames, rng)


@functools.cache
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's hand-written digits: stroke weights (1797, 8, 8) in [0, 1] and the digits that they show (1797,)."""
    images, digits = load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8) / 16, digits


def velocity(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Draw a direction and a speed in [low, high]; returns x and y (2,)."""
    angle = rng.uniform(0, 2 * np.pi)
    return rng.uniform(low, high) * np.array([np.cos(angle), np.sin(angle)])


def bright_colour(rng: np.random.Generator, value: float) -> np.ndarray:
    """Draw RGB (3,) in [0, 1] of a random hue, saturated enough to differ clearly from white."""
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.6, 0.85), value))


def motion_path(motion: str, image_size: int, num_frames: int, rng: np.random.Generator) -> Path:
    """Return the digit's path for one of MOTIONS. All numbers are drawn for every motion, used or not."""
    time = np.arange(num_frames)
    start = rng.uniform(0, image_size, 2)
    speed = rng.uniform(0.012, 0.018) * image_size
    phase, pulse_phase = rng.uniform(0, 2 * np.pi, 2)
    turn = 2 * np.pi / rng.uniform(40, 56)
    pulse = 2 * np.pi / rng.uniform(20, 28)
    jumps = rng.uniform(-1, 1, (num_frames, 2)) * 0.08 * image_size
    centre = np.tile(start, (num_frames, 1))
    if motion in HEADINGS:
        heading = HEADINGS[motion]
        centre += speed * time[:, None] * [np.cos(heading), np.sin(heading)]
    elif motion in ("clockwise", "counter_clockwise"):
        angle = phase + turn * time * (1 if motion == "clockwise" else -1)
        centre += 0.18 * image_size * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    elif motion == "shake":
        centre += jumps
    beat = pulse_phase + pulse * time if motion == "pulse" else np.full(num_frames, pulse_phase)
    size = image_size * (0.42 + 0.13 * np.sin(beat))
    return Path(centre, size, np.zeros(num_frames, bool))


def event_path(task: str, events: list[slice], image_size: int, num_frames: int, rng: np.random.Generator) -> Path:
    """Return a steady drift with a flash or a hop in the frames of each event."""
    centre = rng.uniform(0, image_size, 2) + np.arange(num_frames)[:, None] * velocity(rng, 0.002, 0.006) * image_size
    size = np.full(num_frames, image_size * rng.uniform(0.36, 0.52))
    white = np.zeros(num_frames, bool)
    hops = [velocity(rng, 0.3, 0.5) * image_size for _ in range(MAX_EVENTS)]
    for event, hop in zip(events, hops, strict=False):
        if task == "flash":
            white[event] = True
        else:
            centre[event] += hop
    return Path(centre, size, white)


def draw_event_starts(
    count: int, num_frames: int, rng: np.random.Generator, event_length: int = EVENT_LENGTH
) -> np.ndarray:
    """Draw the first frames (count,) of the events, uniformly from all that keep EVENT_SPACING and EVENT_MARGIN."""
    places = num_frames - 2 * EVENT_MARGIN - event_length + 1 - (count - 1) * (EVENT_SPACING - 1)
    if places < count:
        raise ValueError(
            f"Got num_frames={num_frames}, expected room for {count} events {EVENT_SPACING} frames apart: use 128 frames."
        )
    starts = np.sort(rng.choice(places, count, replace=False))
    return EVENT_MARGIN + starts + np.arange(count) * (EVENT_SPACING - 1)


def draw_ground(rng: np.random.Generator, image_size: int, num_frames: int, pan: np.ndarray) -> np.ndarray:
    """Draw a smooth texture (T, H, W, 3) in [0, 1] of two colours that moves by `pan` (x, y) pixels per frame and wraps around."""
    fine = 4  # samples of the texture per pixel, so that slow motion is smooth
    side = image_size * fine
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * fine  # cycles per pixel
    spectrum = np.fft.rfft2(rng.normal(size=(side, side))) * np.exp(-((frequency / 0.07) ** 2))
    texture = np.fft.irfft2(spectrum, (side, side))
    texture = (texture - texture.min()) / np.ptp(texture)
    columns, rows = (
        np.rint((np.arange(image_size) - shift) * fine).astype(int) % side
        for shift in (np.arange(num_frames)[:, None] * pan).T[..., None]
    )
    panned = texture.astype(np.float32)[rows[:, :, None], columns[:, None, :]][..., None]
    dark, light = bright_colour(rng, 0.1), bright_colour(rng, 0.35)
    return (dark + panned * (light - dark)).astype(np.float32)


def add_grain(rng: np.random.Generator, frames: np.ndarray) -> None:
    """Add noise, new in each frame, in a square of half the picture's side at a random place; changes `frames` (T, H, W, 3) in place."""
    num_frames, image_size = frames.shape[:2]
    side = image_size // 2
    row, column = rng.integers(0, image_size - side + 1, 2)
    square = frames[:, row : row + side, column : column + side]
    noise = rng.uniform(-GRAIN, GRAIN, (num_frames, side, side, 1))
    square[:] = (square + GRAIN + noise).clip(0, 1)


def tremble(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """Shift each frame of (T, H, W, 3) by its own number of whole pixels, wrapping around the edges."""
    reach = TREMBLE * frames.shape[1] // 64
    shifts = rng.integers(-reach, reach + 1, (len(frames), 2))
    return np.stack([np.roll(frame, shift, axis=(0, 1)) for frame, shift in zip(frames, shifts)])


def draw_distractor(rng: np.random.Generator, frames: np.ndarray) -> None:
    """Draw a small disc, ring or square that drifts across `frames` (T, H, W, 3), in place."""
    num_frames, image_size = frames.shape[:2]
    y, x = np.mgrid[-1:1:8j, -1:1:8j]
    radius = np.hypot(x, y)
    shape = (radius < 0.8, (radius > 0.35) & (radius < 0.85), np.maximum(abs(x), abs(y)) < 0.7)[rng.integers(3)]
    drift = np.arange(num_frames)[:, None] * velocity(rng, 0.004, 0.018) * image_size
    size = np.full(num_frames, rng.uniform(0.1, 0.16) * image_size)
    paste(frames, rng.uniform(0, image_size, 2) + drift, bright_colour(rng, 0.5), shape.astype(float), size)


def paste(
    frames: np.ndarray,
    centre: np.ndarray,
    colour: np.ndarray,
    glyph: np.ndarray,
    size: np.ndarray,
    tilt: float = 0.0,
) -> None:
    """Draw a glyph onto `frames` in place, wrapping around the edges.

    Args:
        frames: (T, H, W, 3) in [0, 1], H = W.
        centre: (T, 2), x and y in pixels.
        colour: (3,) or (T, 3) in [0, 1].
        glyph: (8, 8) stroke weights in [0, 1].
        size: (T,), the glyph's height in pixels.
        tilt: in radians.
    """
    num_frames, image_size = frames.shape[:2]
    fine = enlarge(glyph)
    reach = min(int(np.ceil(size.max() * 0.8)), image_size // 2)
    pixel = np.arange(-reach, reach)
    corner = np.floor(centre).astype(int)
    # Pixel centres relative to the glyph's centre, in glyph heights: (T, 2 reach). Then they are turned by the tilt.
    x, y = ((pixel + 0.5 + corner[:, axis, None] - centre[:, axis, None]) / size[:, None] for axis in (0, 1))
    x, y = x[:, None, :], y[:, :, None]
    u, v = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    column, row = (np.clip((place + 0.5) * len(fine), 0, len(fine) - 1).astype(int) for place in (u, v))
    alpha = fine[row, column][..., None]
    rows, columns = ((corner[:, axis, None] + pixel) % image_size for axis in (1, 0))
    where = np.arange(num_frames)[:, None, None], rows[:, :, None], columns[:, None, :]
    behind = frames[where]
    frames[where] = behind + alpha * (np.broadcast_to(colour, (num_frames, 3))[:, None, None] - behind)


def enlarge(glyph: np.ndarray) -> np.ndarray:
    """Return the smooth-edged opacity (160, 160) in [0, 1] of an (8, 8) glyph with a border of one empty pixel."""
    padded = np.pad(glyph, 1)
    place = (np.arange(len(padded) * GLYPH_SCALE) + 0.5) / GLYPH_SCALE - 0.5
    weights = np.maximum(0, 1 - abs(place[:, None] - np.arange(len(padded))))  # linear interpolation as a matrix
    return np.clip((weights @ padded @ weights.T - 0.35) / 0.3, 0, 1).astype(np.float32)


def observer_ceiling(
    num_seen: int, num_frames: int = 128, num_clips: int = 30000, seed: int = 0, event_length: int = EVENT_LENGTH
) -> float:
    """Estimate how often an ideal observer names the right count from `num_seen` evenly spaced frames.

    The observer knows how the events are drawn, and sees without error which of its frames show one. For each count it counts the
    placements of the events that agree with its frames. The ceiling is the mean probability of its best answer.
    """
    rng = np.random.default_rng(seed)
    counts = np.arange(num_clips) % (MAX_EVENTS + 1)
    lit = np.zeros((num_clips, num_frames), bool)
    for clip, count in enumerate(counts.tolist()):
        starts = draw_event_starts(count, num_frames, rng, event_length)
        lit[clip, (starts[:, None] + np.arange(event_length)).ravel()] = True
    seen = np.zeros(num_frames, bool)
    seen[(2 * np.arange(num_seen) + 1) * num_frames // (2 * num_seen)] = True
    nothing = np.zeros(num_frames, bool)
    posterior = placements(lit, seen, event_length) / placements(nothing[None], nothing, event_length)
    return float((posterior.max(axis=1) / posterior.sum(axis=1)).mean())


def placements(lit: np.ndarray, seen: np.ndarray, event_length: int = EVENT_LENGTH) -> np.ndarray:
    """Count the placements (B, counts) of each count of events that agree with `lit` (B, T) at the `seen` (T,) frames."""
    num_clips, num_frames = lit.shape
    may_be_lit, may_be_dark = lit | ~seen, ~lit | ~seen
    # The recursion runs backwards. ways[k]: for frames start + 1 + k and later, given that an event may start there.
    after_the_end = np.zeros((num_clips, MAX_EVENTS + 1))
    after_the_end[:, 0] = 1
    ways = collections.deque([after_the_end] * EVENT_SPACING, maxlen=EVENT_SPACING)
    for start in reversed(range(num_frames)):
        here = ways[0] * may_be_dark[:, start, None]
        if EVENT_MARGIN <= start <= num_frames - EVENT_MARGIN - event_length:
            event, rest = slice(start, start + event_length), slice(start + event_length, start + EVENT_SPACING)
            agrees = may_be_lit[:, event].all(axis=1) & may_be_dark[:, rest].all(axis=1)
            here[:, 1:] += ways[-1][:, :-1] * agrees[:, None]
        ways.appendleft(here)
    return ways[0]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", help="folder to write: new, empty, or of an interrupted run")
    parser.add_argument("--task", choices=list(CLASSES), default="motion", help="the class (default: %(default)s)")
    parser.add_argument("--nuisance", choices=NUISANCES, help="what changes besides (default: nothing)")
    parser.add_argument("--train", type=int, default=640, help="number of clips (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=80, help="number of clips (default: %(default)s)")
    parser.add_argument("--test", type=int, default=160, help="number of clips (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=64, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--num_frames", type=int, default=128, help="frames of a clip (default: %(default)s)")
    parser.add_argument(
        "--event_length",
        type=int,
        default=EVENT_LENGTH,
        choices=range(1, EVENT_SPACING),
        metavar="FRAMES",
        help=f"frames of a flash or hop, 1 to {EVENT_SPACING - 1} (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    return parser.parse_args(argv)


def write_set(args: argparse.Namespace) -> None:
    settings = {"task": args.task, "image_size": args.image_size, "num_frames": args.num_frames, "seed": args.seed}
    # Sets that were drawn before these options existed keep their arguments.
    options = {} if args.nuisance is None else {"nuisance": args.nuisance}
    if args.event_length != EVENT_LENGTH:
        options["event_length"] = args.event_length
    write_videofolder(
        args.output_dir,
        {split: getattr(args, split) for split in SPLITS},
        functools.partial(DigitScene, *settings.values(), **options),
        {"set": "digits", "version": VERSION, **settings, **options},
        args.workers,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    write_set(args)
    if args.task != "motion":
        for num_seen in (args.num_frames // 8, args.num_frames // 4, args.num_frames):
            ceiling = observer_ceiling(num_seen, args.num_frames, event_length=args.event_length)
            print(f"Best possible accuracy from {num_seen} of {args.num_frames} frames: {ceiling:.3f}")


if __name__ == "__main__":
    main()
