"""The arena behind the rendered players: crowd, advertising boards and court, one panorama a game."""

from functools import lru_cache

import cv2
import numpy as np

from rendered_players.rosters import generator, kits_of

_HEIGHT, _WIDTH = 480, 1400
_BOARDS, _FLOOR = 150, 190  # rows at which the boards and the floor begin
_WOODS = ((120, 172, 212), (96, 150, 200), (146, 188, 216), (84, 126, 170), (150, 170, 184))


def _colour(values: np.ndarray) -> tuple[int, int, int]:
    return tuple(int(value) for value in np.clip(values, 0, 255))


def _paint_crowd(panorama: np.ndarray, rng: np.random.Generator, fans: tuple) -> None:
    panorama[:_FLOOR] = _colour(rng.uniform(25, 70, 3))
    for row in range(4, _BOARDS + 8, 13):
        for column in range(int(rng.integers(14)), _WIDTH, 14):
            shirt = np.asarray(fans) if rng.random() < 0.3 else rng.uniform(30, 220, 3)
            centre = (column + int(rng.integers(-2, 3)), row + int(rng.integers(-2, 3)))
            cv2.ellipse(panorama, (centre[0], centre[1] + 9), (6, 7), 0, 0, 360, _colour(shirt * 0.75), -1)
            cv2.circle(panorama, centre, 4, _colour(np.array((90, 120, 160)) * rng.uniform(0.4, 1.2)), -1)


def _paint_boards(panorama: np.ndarray, rng: np.random.Generator) -> None:
    for left in range(0, _WIDTH, 175):
        ground = rng.uniform(20, 230, 3)
        panorama[_BOARDS:_FLOOR, left : left + 175] = _colour(ground)
        text = "".join(chr(65 + int(letter)) for letter in rng.integers(0, 26, 6))
        ink = (245, 245, 245) if ground.mean() < 120 else (30, 30, 30)
        cv2.putText(panorama, text, (left + 10, _FLOOR - 11), cv2.FONT_HERSHEY_DUPLEX, 1.1, ink, 2)


def _paint_floor(panorama: np.ndarray, rng: np.random.Generator, paint: tuple) -> None:
    wood = np.asarray(_WOODS[int(rng.integers(len(_WOODS)))]) + rng.normal(0, 6, 3)
    planks = rng.normal(0, 7, ((_HEIGHT - _FLOOR) // 5, _WIDTH // 60)).astype(np.float32)
    planks = cv2.resize(planks, (_WIDTH, _HEIGHT - _FLOOR), interpolation=cv2.INTER_NEAREST)
    panorama[_FLOOR:] = np.clip(wood + planks[:, :, None], 0, 255).astype(np.uint8)
    line = (240, 240, 240) if rng.random() < 0.7 else (40, 40, 40)
    for centre, sign in ((150, 1), (_WIDTH - 150, -1)):
        key = np.array(
            [
                (centre - 90 * sign, 270),
                (centre + 190 * sign, 270),
                (centre + 220 * sign, 370),
                (centre - 120 * sign, 370),
            ]
        )
        cv2.fillPoly(panorama, [key], paint)
        cv2.polylines(panorama, [key], True, line, 4)
        cv2.ellipse(panorama, (centre, 320), (390, 115), 0, -90 * sign, 90 * sign, line, 4)
    cv2.ellipse(panorama, (_WIDTH // 2, 320), (115, 45), 0, 0, 360, line, 4)
    cv2.line(panorama, (_WIDTH // 2, 205), (_WIDTH // 2, 455), line, 4)
    for row in (205, 455):
        cv2.line(panorama, (0, row), (_WIDTH, row), line, 5)


@lru_cache(maxsize=4)
def arena(seed: int, split: str, game: int) -> np.ndarray:
    """The panorama of a game's arena, uint8 (480, 1400, 3) BGR; read-only, because it is shared."""
    rng = generator(seed, split, 3, game)
    home = kits_of(seed, split, game)["AB"[int(rng.integers(2))]]
    panorama = np.zeros((_HEIGHT, _WIDTH, 3), np.uint8)
    _paint_crowd(panorama, rng, home.jersey)
    _paint_boards(panorama, rng)
    _paint_floor(panorama, rng, home.trim)
    panorama.setflags(write=False)
    return panorama


def view(panorama: np.ndarray, across: float, down: float, zoom: float, size: tuple[int, int]) -> np.ndarray:
    """What the camera sees behind a crop, uint8 (height, width, 3), `size` being (width, height) in pixels.

    `across` and `down` between 0 and 1 place the window, `zoom` is its height as a share of the panorama's.
    """
    rows = round(_HEIGHT * zoom)
    columns = round(rows * size[0] / size[1])
    # The lower edge stays on the floor: the feet of a player are there.
    top = round(_FLOOR + 70 + (_HEIGHT - _FLOOR - 70) * down) - rows
    left = round((_WIDTH - columns) * across)
    return cv2.resize(panorama[max(top, 0) : top + rows, left : left + columns], size)
