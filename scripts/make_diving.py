"""Draw the diving demo set: a figure that dives as Diving48 names dives, rendered with MuJoCo, as real H.264 files.

    python scripts/make_diving.py data/diving
    load_dataset("videofolder", data_dir="data/diving")

24 classes of take-off x somersaults x twists x position, such as Forward_15som_NoTwis_PIKE. Needs `pip install mujoco` and
a GL back end that draws without a display (EGL or OSMesa).

Notable choices:
- The body's poses are given and its centre of mass flies a parabola. It somersaults at L / I(pose): the angular momentum is
  constant, the moment of inertia comes from the pose at each frame, so it turns fast when tucked and slowly when stretched.
- The camera follows the diver as on television: a large figure, at the price of a moving ground.
- Length of flight, height of the platform, camera, side of view and colours are drawn alike for every class.
"""

import argparse
import colorsys
import functools
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformers_lvmae.demo_data import SPLITS, clip_generator, write_videofolder


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
# Joint angles in degrees: right and left shoulder, sideways lift of each arm, elbows, hips, knees, ankles (pointed toes).
POSES = {
    "stand": (10, 10, 8, 8, 10, 0, 0, 0),
    "crouch": (-40, -40, 10, 10, 10, 65, 90, -20),
    "reach": (172, 172, 0, 0, 0, 0, 0, 55),
    "straight": (5, 5, 4, 4, 5, 0, 0, 65),
    "free": (165, 40, 0, 0, 90, 0, 0, 65),
    "pike": (80, 80, 0, 0, 5, 128, 0, 65),
    "tuck": (50, 50, 0, 0, 50, 128, 135, 55),
}
JOINTS = ("shoulder_r", "shoulder_l", "lift_r", "lift_l", "elbow_r elbow_l", "hip_r hip_l", "knee_r knee_l", "ankle_r ankle_l")
NUM_DROPS = 28
VERSION = 1  # part of the set's arguments: raise it when the same arguments draw other pixels

LIMBS = """
<body name="arm_{s}" pos="0 {y}18 .46">
  <joint name="shoulder_{s}" axis="0 -1 0"/><joint name="lift_{s}" axis="{y}1 0 0"/>
  <geom class="skin" fromto="0 0 0 0 0 -.27" size=".05"/>
  <body pos="0 0 -.27"><joint name="elbow_{s}" axis="0 -1 0"/>
    <geom class="skin" fromto="0 0 0 0 0 -.3" size=".043"/><site name="hand_{s}" pos="0 0 -.34"/></body>
</body>
<body name="leg_{s}" pos="0 {y}085 0">
  <joint name="hip_{s}" axis="0 -1 0"/><geom class="skin" fromto="0 0 -.04 0 0 -.42" size=".078"/>
  <body pos="0 0 -.42"><joint name="knee_{s}" axis="0 1 0"/><geom class="skin" fromto="0 0 0 0 0 -.4" size=".058"/>
    <body pos="0 0 -.42"><joint name="ankle_{s}" axis="0 1 0"/>
      <geom class="skin" fromto="-.02 0 -.02 .16 0 -.02" size=".042"/><site name="toe_{s}" pos=".1 0 -.06"/></body></body>
</body>"""
SCENE = (
    """
<mujoco>
  <option gravity="0 0 0"/>
  <visual><quality shadowsize="0" offsamples="0" numslices="12" numstacks="7"/><global fovy="30"/>
    <headlight ambient=".45 .45 .45" diffuse=".5 .5 .5" specular="0 0 0"/></visual>
  <asset>
    <texture name="tiles" type="2d" builtin="checker" rgb1="1 1 1" rgb2=".72 .72 .72" width="64" height="64"/>
    <material name="wall" texture="tiles" texrepeat="14 14"/><material name="water"/><material name="platform"/>
    <material name="skin"/><material name="suit"/><material name="hair"/>
  </asset>
  <default><geom contype="0" conaffinity="0"/><default class="skin"><geom type="capsule" material="skin"/></default></default>
  <worldbody>
    <light pos="2 -6 12" dir="-.1 .5 -1" diffuse=".35 .35 .35" specular="0 0 0"/>
    <geom name="wall" type="box" pos="0 3.5 4" size="9 .1 9" material="wall"/>
    <geom type="box" pos="0 0 -3" size="9 9 3" material="water"/>
    <geom name="board" type="box" pos="-1.5 0 0" size="1.5 .5 .07" material="platform"/>
    <geom name="tower" type="box" pos="-2.2 .6 0" size=".2 .2 8" material="platform"/>
    DROPS
    <body name="diver"><freejoint/>
      <geom type="capsule" fromto="0 0 .16 0 0 .42" size=".125" material="skin"/>
      <geom type="capsule" fromto="0 -.1 .44 0 .1 .44" size=".07" material="skin"/>
      <geom type="ellipsoid" pos="0 0 .03" size=".125 .165 .15" material="suit"/>
      <geom type="sphere" pos=".02 0 .69" size=".105" material="skin"/>
      <geom type="sphere" pos="-.03 0 .72" size=".11" material="hair"/>
      LIMBS
    </body>
  </worldbody>
</mujoco>""".replace("LIMBS", LIMBS.format(s="r", y="-.") + LIMBS.format(s="l", y="."))
    .replace('axis="-.1 0 0"', 'axis="-1 0 0"')
    .replace('axis=".1 0 0"', 'axis="1 0 0"')
    .replace("DROPS", f'<geom type="sphere" size=".06" pos="0 0 -3" rgba=".93 .97 1 1"/>' * NUM_DROPS)
)
