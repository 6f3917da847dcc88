"""Draws a posed person in their clothes onto a canvas, with OpenCV's polygons."""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, hypot, sin

import cv2
import numpy as np

from rendered_players.poses import ANKLE, CHEST, ELBOW, HAND, HEAD, HIP, KNEE, PELVIS, SHOULDER, TOE, Pose, half_width
from rendered_players.rosters import Colour, Look

# Strokes of the digits 0-9 in a unit box (x right, y down), angular as on a jersey.
_DIGITS = (
    ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0)), ((0.2, 0.15), (0.6, 0), (0.6, 1)),
    ((0, 0), (1, 0), (1, 0.5), (0, 0.5), (0, 1), (1, 1)),
    ((0, 0), (1, 0), (1, 0.5), (0.3, 0.5), (1, 0.5), (1, 1), (0, 1)),
    ((0, 0), (0, 0.55), (1, 0.55), (1, 0), (1, 1)), ((1, 0), (0, 0), (0, 0.5), (1, 0.5), (1, 1), (0, 1)),
    ((1, 0), (0, 0), (0, 1), (1, 1), (1, 0.5), (0, 0.5)), ((0, 0), (1, 0), (0.4, 1)),
    ((0, 0.5), (0, 0), (1, 0), (1, 1), (0, 1), (0, 0.5), (1, 0.5)),
    ((1, 0.5), (0, 0.5), (0, 0), (1, 0), (1, 1), (0, 1)),
)  # fmt: skip
_FINE = 8  # OpenCV's fixed-point coordinates: 3 fractional bits


@dataclass(frozen=True)
class Placed:
    """A pose in pixels: joints (n, 2) x right and y down, and the pixels of one body height."""

    pose: Pose
    joints: list
    scale: float


def place(pose: Pose, origin: tuple[float, float], scale: float) -> Placed:
    """Put a pose on a canvas: `origin` is the pixel of the pose's (0, 0), `scale` the pixels of a body height."""
    pixels = pose.joints * (scale, -scale) + origin
    return Placed(pose, pixels.tolist(), scale)


@lru_cache(maxsize=4096)
def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, int(value * factor)) for value in colour)


def _between(p: list, q: list, share: float) -> list:
    return [p[0] + (q[0] - p[0]) * share, p[1] + (q[1] - p[1]) * share]


def _polygon(canvas: np.ndarray, points: list, colour: Colour) -> None:
    cv2.fillPoly(canvas, [(np.array(points) * _FINE).astype(np.int32)], colour, shift=3)


def _disc(canvas: np.ndarray, centre: list, radius: float, colour: Colour) -> None:
    cv2.circle(canvas, (int(centre[0] * _FINE), int(centre[1] * _FINE)), int(radius * _FINE), colour, -1, shift=3)


def _oval(canvas: np.ndarray, centre: list, half_axes: tuple[float, float], colour: Colour) -> None:
    box = ((centre[0], centre[1]), (2 * half_axes[0], 2 * half_axes[1]), 0.0)
    cv2.ellipse(canvas, box, colour, -1)


def _limb(canvas: np.ndarray, p: list, q: list, radii: tuple[float, float], colour: Colour) -> None:
    """A tapered limb, lit from the upper left."""
    length = max(hypot(q[0] - p[0], q[1] - p[1]), 1e-3)
    nx, ny = (q[1] - p[1]) / length, (p[0] - q[0]) / length
    for share, shift, tone in ((1.0, 0.0, 0.74), (0.74, -0.2, 1.0)):
        r, s = radii[0] * share, radii[1] * share
        a, b = [p[0] + shift * radii[0], p[1]], [q[0] + shift * radii[1], q[1]]
        ink = _shade(colour, tone)
        corners = [
            (a[0] + nx * r, a[1] + ny * r), (b[0] + nx * s, b[1] + ny * s),
            (b[0] - nx * s, b[1] - ny * s), (a[0] - nx * r, a[1] - ny * r),
        ]  # fmt: skip
        cv2.fillConvexPoly(canvas, (np.array(corners) * _FINE).astype(np.int32), ink, shift=3)
        _disc(canvas, a, r, ink)
        _disc(canvas, b, s, ink)


def _draw_shorts(canvas: np.ndarray, hip: list, cuff: list, size: float, colour: Colour) -> None:
    """One flared leg of the shorts with a straight hem, lit from the upper left."""
    length = max(hypot(cuff[0] - hip[0], cuff[1] - hip[1]), 1e-3)
    nx, ny = (cuff[1] - hip[1]) / length, (hip[0] - cuff[0]) / length
    for share, shift, tone in ((1.0, 0.0, 0.76), (0.74, -0.012 * size, 1.0)):
        r, s = 0.056 * size * share, 0.066 * size * share
        corners = [
            (hip[0] + nx * r + shift, hip[1] + ny * r), (cuff[0] + nx * s + shift, cuff[1] + ny * s),
            (cuff[0] - nx * s + shift, cuff[1] - ny * s), (hip[0] - nx * r + shift, hip[1] - ny * r),
        ]  # fmt: skip
        _disc(canvas, [hip[0] + shift, hip[1]], r, _shade(colour, tone))
        _polygon(canvas, corners, _shade(colour, tone))


def _draw_leg(canvas: np.ndarray, body: Placed, look: Look, side: int) -> None:
    hip, knee, ankle, toe = (body.joints[pair[side]] for pair in (HIP, KNEE, ANKLE, TOE))
    size = body.scale * look.build
    bare = look.leg_sleeves[side] or look.skin
    _limb(canvas, ankle, toe, (0.026 * body.scale, 0.019 * body.scale), look.shoes)
    _limb(canvas, hip, knee, (0.048 * size, 0.034 * size), bare)
    _limb(canvas, knee, ankle, (0.036 * size, 0.022 * size), bare)
    _limb(canvas, _between(ankle, knee, look.sock_height), ankle, (0.031 * size, 0.023 * size), look.socks)
    cuff = _between(hip, knee, look.bottom_length)
    if look.bottom_length > 1:
        _limb(canvas, knee, _between(knee, ankle, 0.93), (0.042 * size, 0.034 * size), look.bottom)
        _limb(canvas, hip, knee, (0.057 * size, 0.044 * size), look.bottom)
    else:
        _draw_shorts(canvas, hip, cuff, size, look.bottom)
    if look.number is not None and (-1, 1)[side] * sin(body.pose.yaw) > -0.4:
        outward = (1, -1)[side] * cos(body.pose.yaw) * 0.052 * size
        stripe = [[hip[0] + outward, hip[1]], [cuff[0] + outward, cuff[1]]]
        _limb(canvas, *stripe, (0.011 * size, 0.011 * size), look.trim)


def _draw_arm(canvas: np.ndarray, body: Placed, look: Look, side: int) -> None:
    shoulder, elbow, hand = (body.joints[pair[side]] for pair in (SHOULDER, ELBOW, HAND))
    size = body.scale * look.build
    bare = look.arm_sleeves[side] or look.skin
    _limb(canvas, elbow, hand, (0.024 * size, 0.017 * size), bare)
    _limb(canvas, shoulder, elbow, (0.032 * size, 0.025 * size), bare)
    _disc(canvas, hand, 0.021 * size, _shade(look.skin, 0.95))
    if look.wristbands[side]:
        band = [_between(elbow, hand, 0.7), _between(elbow, hand, 0.88)]
        _limb(canvas, *band, (0.021 * size, 0.02 * size), look.wristbands[side])
    if look.undershirt:
        _limb(canvas, shoulder, _between(shoulder, elbow, 0.65), (0.037 * size, 0.034 * size), look.undershirt)


def _digit_strokes(number: int) -> list[np.ndarray]:
    digits = [int(digit) for digit in str(number)]
    pitch = 1.45
    start = -(pitch * (len(digits) - 1) + 1) / 2
    return [np.add(_DIGITS[digit], (start + pitch * place, -0.5)) for place, digit in enumerate(digits)]


def _draw_number(canvas: np.ndarray, body: Placed, look: Look) -> None:
    facing = cos(body.pose.yaw)
    if look.number is None or abs(facing) < 0.3:
        return
    # The back number is the larger one; it is centred on the surface that faces the camera.
    height = (0.09 if facing > 0 else 0.125) * body.scale
    pelvis, chest = body.joints[PELVIS], body.joints[CHEST]
    middle = _between(chest, pelvis, 0.45 if facing > 0 else 0.4)
    middle[0] += sin(body.pose.yaw) * 0.055 * look.build * body.scale * (1 if facing > 0 else -1)
    tilt = (pelvis[0] - chest[0]) / max(pelvis[1] - chest[1], 1.0)
    frame = np.array(((height * 0.5 * abs(facing), 0), (height * tilt, height)))
    strokes = [((stroke @ frame + middle) * _FINE).astype(np.int32) for stroke in _digit_strokes(look.number)]
    thickness = max(1, round(height * 0.2 * (0.4 + 0.6 * abs(facing))))
    cv2.polylines(canvas, strokes, False, look.trim, thickness, cv2.LINE_8, 3)


def _torso_outline(body: Placed, look: Look, slim: float, shift: float) -> list:
    pelvis, chest = body.joints[PELVIS], body.joints[CHEST]
    unit = body.scale * look.build
    points = []
    for sign in (-1, 1):
        rows = ((-0.04, 0.05, 0.04), (-0.005, 0.1, 0.055), (0.2, 0.1, 0.068), (0.6, 0.082, 0.06), (1.1, 0.088, 0.064))
        edge = []
        for share, lateral, depth in rows:
            middle = _between(chest, pelvis, share)
            width = half_width(body.pose, lateral, depth) * unit
            edge.append((middle[0] + sign * slim * width + shift * width, middle[1]))
        points += edge if sign < 0 else edge[::-1]
    return points


def _draw_torso(canvas: np.ndarray, body: Placed, look: Look) -> None:
    yaw, unit = body.pose.yaw, body.scale * look.build
    pelvis, chest = body.joints[PELVIS], body.joints[CHEST]
    _limb(canvas, chest, body.joints[HEAD], (0.03 * unit, 0.027 * unit), _shade(look.skin, 0.85))
    _polygon(canvas, _torso_outline(body, look, 1.0, 0.0), _shade(look.top, 0.76))
    _polygon(canvas, _torso_outline(body, look, 0.78, -0.12), look.top)
    for sign in (-1, 1):
        if sign * sin(yaw) < 0.35 and look.team != "coach":
            lines = [_between(chest, pelvis, 0.3), _between(chest, pelvis, 1.08)]
            edges = [[x + sign * cos(yaw) * 0.082 * unit, y] for x, y in lines]
            _limb(canvas, *edges, (0.013 * unit, 0.013 * unit), look.trim)
    if cos(yaw) > 0.1 or look.number is None:
        depth = 0.035 if cos(yaw) > 0 else 0.012
        _oval(canvas, [chest[0], chest[1] + 0.004 * unit], (0.036 * unit, depth * unit), _shade(look.skin, 0.9))
    _draw_number(canvas, body, look)


def _draw_hair(canvas: np.ndarray, centre: list, radius: float, facing: float, side: float, look: Look) -> None:
    bulk = {"bald": 0.0, "buzz": 0.9, "short": 1.04, "afro": 1.38, "long": 1.12, "bun": 1.02}[look.hair_style]
    if not bulk:
        return
    # Seen from the front, hair covers the top of the head; from behind, nearly all of it.
    away = (1 - facing) / 2
    lift = 0.56 - 0.5 * away
    middle = [centre[0] - side * 0.32 * radius, centre[1] - lift * radius]
    _oval(canvas, middle, (0.92 * bulk * radius, (0.55 + 0.47 * away) * bulk * radius), look.hair)
    back = [centre[0] - side * 0.7 * radius, centre[1]]
    if look.hair_style == "long" and facing < 0.5:
        tail = [back[0], centre[1] + 1.5 * radius]
        _limb(canvas, back, tail, (0.75 * radius, 0.5 * radius), look.hair)
    if look.hair_style == "bun":
        _disc(canvas, [centre[0] - side * 0.95 * radius, centre[1] - 1.05 * radius], 0.5 * radius, look.hair)


def _draw_head(canvas: np.ndarray, body: Placed, look: Look) -> None:
    facing, side = cos(body.pose.yaw), sin(body.pose.yaw)
    centre = body.joints[HEAD]
    radius = 0.063 * look.head * body.scale
    if look.hair_style in ("afro", "long") and facing > -0.3:
        _oval(
            canvas,
            [centre[0] - side * 0.3 * radius, centre[1] - 0.15 * radius],
            (1.1 * radius, 1.15 * radius),
            look.hair,
        )
    _oval(canvas, centre, (0.83 * radius, 1.08 * radius), _shade(look.skin, 0.8))
    _oval(canvas, [centre[0] - 0.1 * radius, centre[1]], (0.7 * radius, 1.0 * radius), look.skin)
    if facing > -0.2:
        face = centre[0] + side * 0.4 * radius
        for eye in (-0.3, 0.3):
            spot = [face + eye * facing * radius, centre[1] - 0.05 * radius]
            _disc(canvas, spot, 0.1 * radius, _shade(look.skin, 0.4))
        if look.beard:
            _oval(canvas, [face, centre[1] + 0.78 * radius], (0.5 * radius, 0.34 * radius), _shade(look.hair, 1.2))
    _draw_hair(canvas, centre, radius, facing, side, look)
    if look.headband:
        row = centre[1] - 0.38 * radius
        ends = [[centre[0] - 0.66 * radius, row], [centre[0] + 0.66 * radius, row]]
        _limb(canvas, *ends, (0.19 * radius, 0.19 * radius), look.headband)


def draw_person(canvas: np.ndarray, body: Placed, look: Look) -> None:
    """Draw a person onto `canvas`, uint8 (height, width, 3) BGR, which is changed; far parts first."""
    near = body.pose.near
    parts = [(0.0, _draw_torso, ()), (near[HEAD] * 0.2 + 0.001, _draw_head, ())]
    parts += [(near[KNEE[side]] - 1.0, _draw_leg, (side,)) for side in (0, 1)]
    parts += [(near[ELBOW[side]] + near[HAND[side]], _draw_arm, (side,)) for side in (0, 1)]
    for _, draw, extra in sorted(parts, key=lambda part: part[0]):
        draw(canvas, body, look, *extra)


def draw_shadow(canvas: np.ndarray, body: Placed) -> None:
    """Darken the floor under a person's feet on `canvas`, which is changed."""
    feet = np.array([body.joints[joint] for joint in ANKLE + TOE])
    half = np.array((np.ptp(feet[:, 0]) / 2 + 0.07 * body.scale, 0.035 * body.scale))
    corner = (feet.mean(axis=0) - half).astype(int)
    low = np.clip(corner, 0, canvas.shape[1::-1])
    high = np.clip(corner + (2 * half).astype(int), 0, canvas.shape[1::-1])
    patch = canvas[low[1] : high[1], low[0] : high[0]]
    if patch.size:
        darkened = np.ascontiguousarray(patch // 4 * 3)
        mask = np.zeros(patch.shape[:2], np.uint8)
        box = ((*(corner - low + half).tolist(),), (*(2 * half).tolist(),), 0.0)
        cv2.ellipse(mask, box, 255, -1)
        cv2.copyTo(darkened, mask, patch)
