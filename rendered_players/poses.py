"""How a rendered person moves: smooth tracks over frames, a walking and running skeleton, its projection."""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, hypot, pi, sin
from typing import NamedTuple

import numpy as np

from rendered_players.rosters import SLOTS, Look, generator

_ELEVATION = 0.2  # radians that the camera looks down
SIDES = ((0, 1.0), (1, -1.0))  # (left, right) with the sign of its lateral axis


class Drifts(NamedTuple):
    """Slowly varying quantities of one frame, each between -1 and 1."""

    yaw: float
    across: float
    down: float
    zoom: float
    size: float
    effort: float
    crouch: float
    left_arm: float
    right_arm: float
    light: float
    resolution: float
    speed: float


@dataclass(frozen=True)
class Track:
    """One person's movement through a sequence, defined at every frame number.

    `waves` (quantities, 2, 2): period in frames and phase of two sines a quantity. `place`: where in the
    arena (0-1 across and down) the player stays. `front` and `behind`: the
    person who passes, period, phase, direction and closest lateral distance in body heights.
    """

    waves: np.ndarray
    yaw: float
    place: tuple[float, float]
    gait: tuple[float, float]
    front: tuple[int, float, float, float, float]
    behind: tuple[int, float, float, float, float]


@dataclass(frozen=True)
class Pose:
    """A projected skeleton in body heights: joints (n, 2) with y upwards, nearness (n,), and the view angles.

    `yaw` is the facing direction in radians: 0 faces the camera, pi shows the back.
    """

    joints: np.ndarray
    near: np.ndarray
    yaw: float


# Rows of Pose.joints: pelvis, chest (between the shoulders), head, then left and right of each pair.
PELVIS, CHEST, HEAD = 0, 1, 2
HIP, KNEE, ANKLE, TOE, SHOULDER, ELBOW, HAND = ((3 + 2 * pair, 4 + 2 * pair) for pair in range(7))


def _passer(rng: np.random.Generator, player: int) -> tuple[int, float, float, float, float]:
    game, slot = divmod(player, len(SLOTS))
    # Mostly team mates and opponents: the referee and the coach seldom stand in the way.
    other = (slot + 1 + int(rng.integers(5 if slot < 6 else 7))) % (6 if slot < 6 else len(SLOTS))
    sign = 1.0 if rng.random() < 0.5 else -1.0
    return (
        game * len(SLOTS) + other,
        float(rng.uniform(9, 18)),
        float(rng.random()),
        sign,
        float(rng.uniform(0.06, 0.17)),
    )


@lru_cache(maxsize=256)
def track_of(seed: int, split: str, player: int) -> Track:
    """The track of the player with this index within the split."""
    rng = generator(seed, split, 2, player)
    count = len(Drifts._fields)
    periods = rng.uniform((14.0, 5.0), (44.0, 11.0), (count, 2))
    waves = np.stack([periods, rng.uniform(0, 2 * pi, (count, 2))], axis=2)
    yaw, rate, phase = rng.uniform((0, 0.12, 0), (2 * pi, 0.34, 2 * pi))
    place = tuple(rng.uniform((0.1, 0.2), (0.9, 0.8)).tolist())
    return Track(waves, float(yaw), place, (float(rate), float(phase)), _passer(rng, player), _passer(rng, player))


def drifts_at(track: Track, frame: int, drift: float = 1.0) -> Drifts:
    """The track's slowly varying quantities at a frame, `drift` times as far from 0."""
    sines = np.sin(2 * pi * frame / track.waves[:, :, 0] + track.waves[:, :, 1])
    return Drifts(*(sines @ (0.72, 0.28) * drift).tolist())


def passing_offset(passer: tuple[int, float, float, float, float], frame: int) -> float:
    """Lateral distance, in body heights, from a person to the one who passes before or behind."""
    _, period, phase, sign, closest = passer
    swing = 2.6 * (((frame / period + phase) % 1.0) - 0.5)
    return sign * swing + (closest if sign * swing > 0 else -closest)


def _leg(look: Look, sign: float, swing: float, bend: float, spread: float) -> list:
    thigh, shin = 0.243 * look.legs, 0.235 * look.legs
    hip = np.array((sign * 0.05 * look.build, 0.0, 0.0))
    knee = hip + thigh * np.array((sign * sin(spread), sin(swing), -cos(swing) * cos(spread)))
    lower = swing - bend
    ankle = knee + shin * np.array((sign * sin(spread) * 0.5, sin(lower), -cos(lower)))
    toe = ankle + 0.095 * np.array((sign * 0.25, cos(lower * 0.7), sin(lower * 0.7) - 0.2))
    return [hip, knee, ankle, toe]


def _arm(chest: np.ndarray, look: Look, sign: float, swing: float, bend: float, lift: float, twist: float) -> list:
    half = 0.112 * look.build
    shoulder = chest + half * np.array((sign * cos(twist), sign * sin(twist), -0.12))
    upper = np.array((sign * sin(lift), cos(lift) * sin(swing), -cos(lift) * cos(swing)))
    rise = lift * 1.12
    fore = np.array((sign * sin(rise) * 0.6, cos(rise) * sin(swing + bend), -cos(rise) * cos(swing + bend)))
    elbow = shoulder + 0.165 * upper
    return [shoulder, elbow, elbow + 0.165 * fore / max(np.linalg.norm(fore), 0.3)]


def _skeleton(look: Look, drifts: Drifts, phase: float) -> np.ndarray:
    effort = 0.18 + 0.34 * (1 + drifts.effort)
    crouch = max(0.0, drifts.crouch) * 0.7
    stride = sin(phase)
    lean = 0.04 + 0.14 * effort + 0.5 * crouch
    chest = 0.285 * np.array((0.0, sin(lean), cos(lean)))
    head = chest + 0.108 * np.array((0.0, sin(lean * 0.5) + 0.1, cos(lean * 0.5)))
    pairs = []
    for side, sign in SIDES:
        swing = effort * stride * sign
        bend = 0.12 + crouch * 1.3 + effort * max(0.0, sign * cos(phase)) ** 1.5
        lift = 0.16 + 2.3 * max(0.0, (drifts.left_arm, drifts.right_arm)[side] - 0.1) ** 1.3
        leg = _leg(look, sign, swing + crouch * 0.9, bend, 0.07 + 0.35 * crouch)
        arm = _arm(chest, look, sign, -swing * 0.9, 0.3 + effort * 0.9, lift, 0.25 * effort * stride)
        pairs.append(leg + arm)
    interleaved = [joint for pair in zip(*pairs, strict=True) for joint in pair]
    return np.array([np.zeros(3), chest, head, *interleaved])


def pose_at(look: Look, track: Track, frame: int, drift: float = 1.0) -> Pose:
    """The person's projected skeleton at a frame, feet on y = 0."""
    drifts = drifts_at(track, frame, drift)
    rate, phase = track.gait
    joints = _skeleton(look, drifts, 2 * pi * rate * frame + phase)
    joints[:, 2] -= joints[list(TOE + ANKLE), 2].min() - 0.03
    yaw = (track.yaw + 1.2 * drifts.yaw) % (2 * pi)
    across = joints[:, 0] * cos(yaw) + joints[:, 1] * sin(yaw)
    near = joints[:, 1] * cos(yaw) - joints[:, 0] * sin(yaw)
    up = joints[:, 2] * cos(_ELEVATION) - near * sin(_ELEVATION)
    return Pose(np.stack([across, up], axis=1), near, yaw)


def half_width(pose: Pose, lateral: float, depth: float) -> float:
    """Half of the projected width of a body section with these half axes (side to side, chest to back)."""
    return hypot(lateral * cos(pose.yaw), depth * sin(pose.yaw))


def extent(pose: Pose) -> tuple[float, float, float, float]:
    """The bounding box of the drawn person in body heights: left, right, bottom, top."""
    left, bottom = pose.joints.min(axis=0)
    right, top = pose.joints.max(axis=0)
    return left - 0.045, right + 0.045, bottom - 0.03, max(top + 0.02, pose.joints[HEAD, 1] + 0.075)
