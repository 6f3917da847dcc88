"""One rendered crop: a person before the arena, others in the way, and what a broadcast camera does to it."""

from math import degrees

import cv2
import numpy as np

from rendered_players.drawing import Placed, draw_person, draw_shadow, place
from rendered_players.poses import HAND, Drifts, drifts_at, extent, passing_offset, pose_at, track_of
from rendered_players.rosters import DEFAULT_DIFFICULTY, DIFFICULTIES, Difficulty, game_of, generator, look_of
from rendered_players.scenery import arena, view

_SUPERSAMPLING = 2


def _person(seed: int, split: str, player: int, frame: int, hard: Difficulty) -> tuple:
    look = look_of(seed, split, player, hard.alike)
    return look, pose_at(look, track_of(seed, split, player), frame, hard.drift)


def _layout(pose, rng: np.random.Generator, rows: int) -> tuple[tuple[int, int], tuple[float, float], float]:
    """Canvas (width, height), origin and scale in pixels: a loose, jittered box around the person."""
    left, right, bottom, top = extent(pose)
    margin_x, margin_y = rng.uniform((0.02, 0.0), (0.12, 0.07))
    high = (top - bottom) * (1 + margin_y)
    wide = np.clip((right - left) * (1 + margin_x), 0.36 * high, 0.62 * high)
    scale = rows / high
    jitter = rng.normal(0, 0.012, 2)
    origin = (
        scale * (wide / 2 - (left + right) / 2 + jitter[0]),
        scale * ((high + top + bottom) / 2 + jitter[1]),
    )
    return (round(scale * wide), rows), origin, scale


def _draw_passer(
    canvas: np.ndarray, seed: int, split: str, passer: tuple, frame: int, hard: Difficulty, body: Placed, nearer: float
):
    """Draw the person who passes before or behind, if in sight; `nearer` moves them down and enlarges them."""
    offset = passing_offset(passer, frame) * body.scale / hard.occlusion
    middle = body.joints[0][0] + offset
    if not -0.25 * body.scale < middle < canvas.shape[1] + 0.25 * body.scale:
        return
    look, pose = _person(seed, split, passer[0], frame, hard)
    ground = body.joints[0][1] + body.pose.joints[0, 1] * body.scale
    other = place(pose, (middle, ground + nearer * body.scale), body.scale * (1 + nearer))
    draw_shadow(canvas, other)
    draw_person(canvas, other, look)


def _draw_ball(canvas: np.ndarray, body: Placed, rng: np.random.Generator) -> None:
    hand = body.joints[HAND[int(rng.integers(2))]]
    centre = (round(hand[0]), round(hand[1] + 0.03 * body.scale))
    cv2.circle(canvas, centre, round(0.058 * body.scale), (40, 84, 160), -1)
    cv2.circle(canvas, (centre[0] - 2, centre[1] - 2), round(0.042 * body.scale), (52, 108, 204), -1)


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(cv2.absdiff(before, after), cv2.COLOR_BGR2GRAY)
    return cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY)[1]


def _scene(
    seed: int, split: str, player: int, frame: int, hard: Difficulty, rows: int, rng: np.random.Generator
) -> tuple:
    """The sharp scene at `rows` pixels of height, the occluded share and the facing direction in radians."""
    track = track_of(seed, split, player)
    look, pose = _person(seed, split, player, frame, hard)
    drifts = drifts_at(track, frame, hard.drift)
    size, origin, scale = _layout(pose, rng, rows)
    body = place(pose, origin, scale)
    panning = np.array((0.25 * drifts.across, 0.3 * drifts.down))
    across, down = np.clip(track.place + panning + rng.normal(0, 0.02, 2), 0, 1)
    canvas = view(arena(seed, split, game_of(player)), across, down, 0.5 + 0.08 * drifts.zoom, size)
    _draw_passer(canvas, seed, split, track.behind, frame, hard, body, -0.06)
    draw_shadow(canvas, body)
    before = canvas.copy()
    draw_person(canvas, body, look)
    if look.number is not None and rng.random() < 0.12:
        _draw_ball(canvas, body, rng)
    after = canvas.copy()
    _draw_passer(canvas, seed, split, track.front, frame, hard, body, 0.05)
    own = _changed(before, after)
    hidden = cv2.countNonZero(own & _changed(after, canvas)) / max(cv2.countNonZero(own), 1)
    return canvas, hidden, pose.yaw


def _blur_kernel(length: float, angle: float) -> np.ndarray:
    size = 2 * int(np.ceil(length / 2)) + 1
    kernel = np.zeros((size, size), np.float32)
    reach = np.array((np.cos(angle), np.sin(angle))) * length / 2
    ends = ((size // 2 + reach * ((-1,), (1,))) * 16).astype(int)
    cv2.line(kernel, tuple(ends[0].tolist()), tuple(ends[1].tolist()), 1.0, 1, cv2.LINE_8, 4)
    return kernel / kernel.sum()


def _light(image: np.ndarray, cast: np.ndarray, drifts: Drifts, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Brightness, colour cast and saturation of the moment; also the gain in force."""
    gain = float(1 + 0.07 * drifts.light + rng.normal(0, 0.03))
    saturation = float(np.clip(rng.normal(0.96, 0.06), 0.75, 1.15))
    grey = np.full((3, 3), 1 / 3) * (1 - saturation) + np.eye(3) * saturation
    colours = grey * (gain * cast * rng.uniform(0.98, 1.02, 3))[:, None]
    offset = np.full((3, 1), rng.normal(0, 4))
    return cv2.transform(image, np.hstack([colours, offset])), gain


def render_crop(
    seed: int, split: str, player: int, frame: int, height: int, difficulty: int = DEFAULT_DIFFICULTY
) -> tuple[bytes, dict]:
    """Render one crop of a player; `player` counts within the split, `difficulty` within `DIFFICULTIES`.

    Returns the JPEG file's bytes and the true nuisance values: `blur` (pixels of motion), `occluded` (share of the
    person's pixels hidden by others), `scale` (image height over `height`), `resolution` (share of the height
    that the camera resolved), `view` (degrees; 0 faces the camera, 180 shows the back), `gain`, `quality` (JPEG)
    and `team` (`A`, `B`, `referee` or `coach`). The bytes depend on nothing but the arguments.
    """
    rng = generator(seed, split, 4, player, frame)
    hard = DIFFICULTIES[difficulty]
    drifts = drifts_at(track_of(seed, split, player), frame, hard.drift)
    cast = generator(seed, split, 5, game_of(player)).uniform(0.94, 1.06, 3)
    rows = max(16, round(height * (1 + 0.14 * drifts.size)))
    scene, occluded, yaw = _scene(seed, split, player, frame, hard, _SUPERSAMPLING * rows, rng)
    columns = max(8, round(scene.shape[1] / _SUPERSAMPLING))
    resolution = 0.8 + 0.2 * drifts.resolution + rng.normal(0, 0.05)
    resolution = float(np.clip(resolution - (hard.blur - 1) * (1 - resolution), 0.3, 1.0))
    seen = (max(4, round(columns * resolution)), max(8, round(rows * resolution)))
    image = cv2.resize(scene, seen, interpolation=cv2.INTER_AREA)
    image, gain = _light(image, cast, drifts, rng)
    blur = float(max(0.0, 2.4 * drifts.speed + rng.normal(0.4, 0.7)) * hard.blur * height / 128)
    if blur * resolution >= 1:
        image = cv2.filter2D(image, -1, _blur_kernel(blur * resolution, rng.uniform(0, np.pi)))
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(hard.blur * rng.uniform(1.5, 6.0))
    image = cv2.add(image, noise, dtype=cv2.CV_8U)
    image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    quality = int(rng.integers(38, 90))
    data = cv2.imencode(".jpeg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return data, {
        "blur": round(blur, 2),
        "occluded": round(occluded, 3),
        "scale": round(rows / height, 3),
        "resolution": round(resolution, 3),
        "view": round(degrees(yaw)),
        "gain": round(gain, 3),
        "quality": quality,
        "team": look_of(seed, split, player).team,
    }
