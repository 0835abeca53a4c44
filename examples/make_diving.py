"""Draw the diving demo set: a figure that makes Diving48's kinds of dives, rendered with MuJoCo, as H.264 files.

    python examples/make_diving.py data/diving
    load_dataset("videofolder", data_dir="data/diving")

24 classes of take-off x somersaults x twists x position, such as Forward_15som_NoTwis_PIKE. Needs `pip install mujoco` and
a GL back end that draws without a display (EGL or OSMesa).

Notable choices:
- The body's poses are given, and its centre of mass flies a parabola. The angular momentum L is constant and the moment of inertia I
  follows from the pose. The body turns at L / I: fast when tucked, slowly when stretched.
- The camera follows the diver, as on television. The figure is large and the background moves.
- Length of flight, height of the platform, camera, side of view and colours have the same distribution in every class.
"""

import argparse
import colorsys
import functools
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from demo_data import SPLITS, clip_generator, write_videofolder


CLASSES = (
    "Back_15som_05Twis_FREE",
    "Back_15som_15Twis_FREE",
    "Back_15som_25Twis_FREE",
    "Back_15som_NoTwis_PIKE",
    "Back_25som_NoTwis_TUCK",
    "Back_Dive_NoTwis_PIKE",
    "Forward_15som_1Twis_FREE",
    "Forward_15som_NoTwis_PIKE",
    "Forward_25som_2Twis_PIKE",
    "Forward_25som_NoTwis_TUCK",
    "Forward_35som_NoTwis_PIKE",
    "Forward_Dive_NoTwis_STR",
    "Inward_15som_NoTwis_PIKE",
    "Inward_15som_NoTwis_TUCK",
    "Inward_25som_NoTwis_PIKE",
    "Inward_25som_NoTwis_TUCK",
    "Inward_35som_NoTwis_TUCK",
    "Inward_Dive_NoTwis_PIKE",
    "Reverse_15som_05Twis_FREE",
    "Reverse_15som_15Twis_FREE",
    "Reverse_15som_35Twis_FREE",
    "Reverse_15som_NoTwis_PIKE",
    "Reverse_25som_NoTwis_PIKE",
    "Reverse_25som_NoTwis_TUCK",
)
SOMERSAULTS = {"Dive": 0.5, "15som": 1.5, "25som": 2.5, "35som": 3.5}
TWISTS = {"NoTwis": 0.0, "05Twis": 0.5, "1Twis": 1.0, "15Twis": 1.5, "2Twis": 2.0, "25Twis": 2.5, "35Twis": 3.5}
POSITIONS = {"STR": "straight", "PIKE": "pike", "TUCK": "tuck", "FREE": "free"}
# Joint angles in degrees, in the order of JOINTS; shoulders: 0 hanging, 180 overhead; ankles: 90 points the toes.
JOINTS = (
    "shoulder_r",
    "shoulder_l",
    "lift_r lift_l",
    "elbow_r elbow_l",
    "hip_r hip_l",
    "knee_r knee_l",
    "ankle_r ankle_l",
)
POSES = {
    "stand": (10, 10, 8, 10, 0, 0, 0),
    "crouch": (-40, -40, 10, 10, 65, 90, -20),
    "reach": (172, 172, 0, 0, 0, 0, 55),
    "straight": (0, 0, 85, 0, 0, 0, 60),
    "free": (160, 30, 0, 85, 0, 0, 60),
    "pike": (82, 82, 0, 5, 128, 0, 60),
    "tuck": (55, 55, 0, 40, 130, 135, 50),
}
NUM_DROPS = 28
ENTRY_HEIGHT = 1.15  # metres from the fingertips to the centre of mass: its height when the hands touch the water
VERSION = 1  # part of the set's arguments: raise it when the same arguments draw other pixels

LIMBS = """
<body name="arm_{side}" pos="0 {sign}.18 .46">
  <joint name="shoulder_{side}" axis="0 -1 0"/><joint name="lift_{side}" axis="{sign}1 0 0"/>
  <geom class="limb" fromto="0 0 0 0 0 -.27" size=".05"/>
  <body pos="0 0 -.27"><joint name="elbow_{side}" axis="0 -1 0"/><geom class="limb" fromto="0 0 0 0 0 -.34" size=".043"/></body>
</body>
<body name="leg_{side}" pos="0 {sign}.085 0">
  <joint name="hip_{side}" axis="0 -1 0"/><geom class="limb" fromto="0 0 -.04 0 0 -.42" size=".078"/>
  <body pos="0 0 -.42"><joint name="knee_{side}" axis="0 1 0"/><geom class="limb" fromto="0 0 0 0 0 -.4" size=".058"/>
    <body pos="0 0 -.42"><joint name="ankle_{side}" axis="0 1 0"/>
      <geom class="limb" fromto="-.02 0 -.02 .16 0 -.02" size=".042"/><site name="toe_{side}" pos=".1 0 -.06"/></body></body>
</body>"""
SCENE = f"""
<mujoco>
  <visual><quality shadowsize="0" offsamples="0" numslices="12" numstacks="7"/><global fovy="30"/>
    <headlight ambient=".45 .45 .45" diffuse=".5 .5 .5" specular="0 0 0"/></visual>
  <asset>
    <texture name="tiles" type="2d" builtin="checker" rgb1="1 1 1" rgb2=".75 .75 .75" width="64" height="64"/>
    <material name="wall" texture="tiles" texrepeat="7 7"/><material name="water"/><material name="platform"/>
    <material name="skin"/><material name="suit"/><material name="hair"/>
  </asset>
  <default><geom contype="0" conaffinity="0"/><default class="limb"><geom type="capsule" material="skin"/></default></default>
  <worldbody>
    <light pos="2 -6 12" dir="-.1 .5 -1" diffuse=".35 .35 .35" specular="0 0 0"/>
    <geom type="box" pos="0 3.5 4" size="9 .1 9" material="wall"/>
    <geom type="box" pos="0 0 -3" size="9 9 3" material="water"/>
    <geom name="board" type="box" pos="-1.44 0 4" size="1.5 .5 .07" material="platform"/>
    <geom type="box" pos="-2.2 .6 0" size=".2 .2 8" material="platform"/>
    {'<geom type="sphere" size=".06" rgba=".93 .97 1 1"/>' * NUM_DROPS}
    <body name="diver"><freejoint/>
      <geom type="capsule" fromto="0 0 .16 0 0 .42" size=".125" material="skin"/>
      <geom type="capsule" fromto="0 -.1 .44 0 .1 .44" size=".07" material="skin"/>
      <geom type="ellipsoid" pos="0 0 .03" size=".125 .165 .15" material="suit"/>
      <geom type="sphere" pos=".02 0 .69" size=".105" material="skin"/>
      <geom type="sphere" pos="-.03 0 .72" size=".11" material="hair"/>
      {LIMBS.format(side="r", sign="-")}{LIMBS.format(side="l", sign="")}
    </body>
  </worldbody>
</mujoco>"""


class Studio:
    """MuJoCo's model of pool and diver, and a renderer. Each process has one and draws its clips with it."""

    def __init__(self, image_size: int) -> None:
        self.mujoco = mujoco = import_mujoco()
        self.model = mujoco.MjModel.from_xml_string(SCENE)
        self.data = mujoco.MjData(self.model)
        self.camera = mujoco.MjvCamera()
        try:
            self.renderer = mujoco.Renderer(self.model, image_size, image_size)
        except Exception as error:  # each back end raises errors of its own classes
            raise RuntimeError(gl_message(error)) from error
        self.angles = [[self.model.joint(name).qposadr[0] for name in names.split()] for names in JOINTS]
        self.drops = np.flatnonzero(self.model.geom_size[:, 0] == 0.06)  # the only geoms of this radius

    def pose(self, angles: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> None:
        """Set the joint angles (7,) in degrees, the hips' position (3,) and the body's rotation as a quaternion (4,)."""
        self.data.qpos[:3], self.data.qpos[3:7] = position, rotation
        for addresses, angle in zip(self.angles, np.radians(angles), strict=True):
            self.data.qpos[addresses] = angle
        self.mujoco.mj_kinematics(self.model, self.data)
        self.mujoco.mj_comPos(self.model, self.data)

    def measure(self, angles: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the moment of inertia about the somersault axis in kg m2, and centre of mass (3,) and toes (3,) relative to the hips."""
        self.pose(angles, np.zeros(3), np.array([1.0, 0, 0, 0]))
        model, data = self.model, self.data
        centre = data.subtree_com[model.body("diver").id].copy()
        bodies = np.flatnonzero(model.body_mass)
        axes = data.ximat[bodies].reshape(-1, 3, 3)[:, 1]  # the y axis in each body's frame of inertia
        own = (axes**2 * model.body_inertia[bodies]).sum()
        orbit = (model.body_mass[bodies] * ((data.xipos[bodies] - centre)[:, [0, 2]] ** 2).sum(axis=1)).sum()
        return float(own + orbit), centre, (data.site("toe_r").xpos + data.site("toe_l").xpos) / 2

    def rotation(self, yaw: float, somersault: float, twist: float) -> np.ndarray:
        """Return a quaternion (4,): twist about the long axis of the body, then somersault about its side axis, then turn by `yaw`."""
        result = np.array([1.0, 0, 0, 0])
        for axis, angle in (((0, 0, 1), yaw), ((0, 1, 0), somersault), ((0, 0, 1), twist)):
            turn, product = np.zeros(4), np.zeros(4)
            self.mujoco.mju_axisAngle2Quat(turn, np.array(axis, float), angle)
            self.mujoco.mju_mulQuat(product, result, turn)
            result = product
        return result

    def turned(self, vector: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Rotate `vector` (3,) by a quaternion (4,)."""
        result = np.zeros(3)
        self.mujoco.mju_rotVecQuat(result, vector, rotation)
        return result

    def paint(self, rng: np.random.Generator) -> None:
        """Draw the clip's colours."""
        skin = rng.uniform(0.35, 1.0) * np.array([1.0, 0.78, 0.62])
        colours = {
            "skin": skin,
            "suit": colour(rng.uniform(), 0.9, 0.75),
            "hair": colour(rng.uniform(0, 0.12), 0.6, rng.uniform(0.08, 0.4)),
            "wall": colour(rng.uniform(0.35, 0.9), rng.uniform(0.1, 0.5), rng.uniform(0.45, 0.75)),
            "water": colour(rng.uniform(0.48, 0.62), 0.75, rng.uniform(0.45, 0.75)),
            "platform": colour(rng.uniform(), 0.2, rng.uniform(0.3, 0.9)),
        }
        for name, rgb in colours.items():
            self.model.material(name).rgba[:3] = rgb

    def photograph(self, look_at: np.ndarray, drops: np.ndarray) -> np.ndarray:
        """Render one frame, uint8 (H, W, 3), with the camera turned to `look_at` (3,) and the splash's drops at (NUM_DROPS, 3)."""
        self.camera.lookat[:] = look_at
        self.data.geom_xpos[self.drops] = drops
        self.renderer.update_scene(self.data, self.camera)
        return self.renderer.render()


@functools.cache
def studio(image_size: int) -> Studio:
    """Return this process's studio. A GL context takes long to open, and processes must not share one."""
    return Studio(image_size)


def import_mujoco() -> Any:
    """Import MuJoCo. On Linux it draws without a display, unless MUJOCO_GL is set."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
        import mujoco.gl_context
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"Got no module {error.name!r}, expected MuJoCo to draw with: pip install mujoco."
        ) from error
    except Exception as error:  # importing loads the GL library, and each back end raises errors of its own classes
        raise RuntimeError(gl_message(error)) from error
    return mujoco


def gl_message(error: Exception) -> str:
    return (
        f"Got {type(error).__name__} ({error}) from MUJOCO_GL={os.environ.get('MUJOCO_GL')!r}, expected a GL back end that draws "
        "without a display: install Mesa's EGL (apt-get install libegl1 libgl1-mesa-dri) or set MUJOCO_GL=osmesa."
    )


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))


@dataclass(frozen=True)
class DivingScene:
    """One clip of the diving set, a function of (sizes, seed, split, index) alone."""

    image_size: int
    num_frames: int
    seed: int
    split_number: int
    index: int

    @property
    def label(self) -> str:
        """Class name; the classes take turns, so every prefix of a split is balanced."""
        return CLASSES[self.index % len(CLASSES)]

    @property
    def attributes(self) -> dict[str, str | float]:
        """The clip's row in `metadata.csv`."""
        takeoff, somersaults, twists, position = self.label.split("_")
        return {
            "label": self.label,
            "takeoff": takeoff.lower(),
            "somersaults": SOMERSAULTS[somersaults],
            "twists": TWISTS[twists],
            "position": POSITIONS[position],
        }

    def render(self) -> np.ndarray:
        """uint8 frames (num_frames, image_size, image_size, 3)."""
        rng = clip_generator(self.seed, self.split_number, self.index)
        stage = studio(self.image_size)
        stage.paint(rng)
        dive = Dive(self.attributes, self.num_frames, stage, rng)
        # The scene file must not put the board at the origin: MuJoCo would then ignore what is written here.
        stage.model.geom("board").pos[:] = -1.44, 0, dive.height - 0.07
        stage.camera.distance = rng.uniform(5.0, 6.0)
        stage.camera.azimuth, stage.camera.elevation = 90 + rng.uniform(-15, 15), rng.uniform(-9, -4)
        drops = splash((dive.progress - 1) * dive.flight, dive.entry_x, rng)
        frames = np.stack([stage.photograph(dive.show(frame), drops[frame]) for frame in range(self.num_frames)])
        return frames[:, :, ::-1] if rng.uniform() < 0.5 else frames


class Dive:
    """The diver's pose, place and rotation in each of T frames."""

    def __init__(
        self, attributes: dict[str, str | float], num_frames: int, stage: Studio, rng: np.random.Generator
    ) -> None:
        self.stage = stage
        start, self.flight = rng.uniform(14, 24), rng.uniform(70, 80)  # in 128ths of the clip
        time = np.arange(num_frames) * 128 / num_frames
        self.progress = (time - start) / self.flight  # 0 at take-off, 1 when the hands touch the water
        self.height = rng.uniform(4.0, 5.2)
        self.angles = interpolate(keyframes(attributes, -start / self.flight, rng), self.progress)
        measures = [stage.measure(angles) for angles in self.angles]
        inertia, self.centre, self.toes = (np.array(part) for part in zip(*measures, strict=True))
        takeoff = attributes["takeoff"]
        self.yaw = 0.0 if takeoff in ("forward", "reverse") else np.pi
        sense = 1 if takeoff in ("forward", "inward") else -1
        self.somersault = sense * 2 * np.pi * float(attributes["somersaults"]) * share_turned(inertia, self.progress)
        twist_end = 0.45 if attributes["position"] == "pike" else 0.8
        self.twist = (
            rng.choice([-1, 1])
            * 2
            * np.pi
            * float(attributes["twists"])
            * ease((self.progress - 0.1) / (twist_end - 0.1))
        )
        self.path = self._path(rng.uniform(0.7, 1.0), rng.uniform(0.9, 1.4))
        self.entry_x = float(np.interp(1, self.progress, self.path[:, 0]))
        self.aim = rng.uniform(-0.2, 0.2, 3)

    def show(self, frame: int) -> np.ndarray:
        """Move the body to its place in `frame`; returns the point (3,) that the camera follows."""
        rotation = self.stage.rotation(self.yaw, self.somersault[frame], self.twist[frame])
        hips = self.path[frame] - self.stage.turned(self.centre[frame], rotation)
        self.stage.pose(self.angles[frame], hips, rotation)
        x, _, z = self.path[frame]
        return np.array([x, 0, max(z, 1.0)]) + self.aim

    def _path(self, rise: float, reach: float) -> np.ndarray:
        """Return the centre of mass (T, 3) in metres: above the toes until take-off, then on a parabola."""
        facing = np.array([np.cos(self.yaw), 1, 1])
        edge = np.array([0, 0, self.height])
        path = edge + (self.centre - self.toes) * facing
        _, centre, toes = self.stage.measure(np.array(POSES["reach"]))
        launch = edge + (centre - toes) * facing
        drop = launch[2] - ENTRY_HEIGHT
        climb = 2 * rise + 2 * np.sqrt(
            rise**2 + rise * drop
        )  # with this speed the body rises by `rise` and is `drop` below the start at progress 1
        flown = self.progress[self.progress > 0]
        path[self.progress > 0] = launch + np.stack(
            [reach * flown, 0 * flown, climb * flown - (climb + drop) * flown**2], 1
        )
        return path


def keyframes(
    attributes: dict[str, str | float], first: float, rng: np.random.Generator
) -> list[tuple[float, tuple[float, ...]]]:
    """Return (progress, joint angles) from standing on the platform at `first` < 0 to the entry at 1."""
    position = str(attributes["position"])
    bent, opened = rng.uniform(0.12, 0.18), rng.uniform(0.76, 0.82)
    if attributes["somersaults"] == 0.5:
        flight = [(bent + 0.15, position), (opened - 0.3, position), (opened, "reach")]
    elif attributes["twists"] and position == "pike":
        flight = [(bent, "free"), (0.42, "free"), (0.52, "pike"), (opened, "pike"), (0.94, "reach")]
    else:
        flight = [(bent, position), (opened, position), (0.94, "reach")]
    steps = [(first, "stand"), (first * 0.75, "stand"), (first * 0.35, "crouch"), (0.0, "reach"), *flight]
    return [(when, POSES[name]) for when, name in steps]


def interpolate(keys: list[tuple[float, tuple[float, ...]]], progress: np.ndarray) -> np.ndarray:
    """Return joint angles (T, 7) that move smoothly from one of `keys` to the next."""
    times, poses = np.array([when for when, _ in keys]), np.array([pose for _, pose in keys], float)
    last = np.clip(np.searchsorted(times, progress, side="right") - 1, 0, len(keys) - 2)
    share = ease((progress - times[last]) / (times[last + 1] - times[last]))[:, None]
    return poses[last] * (1 - share) + poses[last + 1] * share


def ease(share: np.ndarray) -> np.ndarray:
    """Map [0, 1] to [0, 1] with a smooth start and end."""
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)


def share_turned(inertia: np.ndarray, progress: np.ndarray) -> np.ndarray:
    """Return the share (T,) of the whole rotation that a body of `inertia` (T,) and constant angular momentum has made."""
    rate = np.where((progress > 0) & (progress <= 1), 1 / inertia, 0)
    return np.cumsum(rate) / rate.sum()


def splash(since_entry: np.ndarray, entry_x: float, rng: np.random.Generator) -> np.ndarray:
    """Return the places (T, NUM_DROPS, 3) of the drops that rise at `entry_x` metres; before and after, they are under the water.

    Args:
        since_entry: (T,) in 128ths of the clip.
    """
    gravity = 0.0045  # metres per squared 128th of the clip, as in the diver's fall
    time = since_entry[:, None] - rng.uniform(0, 10, NUM_DROPS)
    angle, spread = rng.uniform(0, 2 * np.pi, NUM_DROPS), rng.uniform(0.003, 0.025, NUM_DROPS)
    height = rng.uniform(0.035, 0.085, NUM_DROPS) * time - gravity / 2 * time**2
    x, y = entry_x + spread * np.cos(angle) * time, spread * np.sin(angle) * time
    return np.stack([x, y, np.where((time > 0) & (height > 0), height, -3)], axis=-1)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", help="folder to write: new, empty, or of an interrupted run")
    parser.add_argument("--train", type=int, default=480, help="number of clips (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=72, help="number of clips (default: %(default)s)")
    parser.add_argument("--test", type=int, default=144, help="number of clips (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=96, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--num_frames", type=int, default=128, help="frames of a clip (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    settings = {"image_size": args.image_size, "num_frames": args.num_frames, "seed": args.seed}
    write_videofolder(
        args.output_dir,
        {split: getattr(args, split) for split in SPLITS},
        functools.partial(DivingScene, *settings.values()),
        {"set": "diving", "version": VERSION, **settings},
        args.workers,
    )


if __name__ == "__main__":
    main()
