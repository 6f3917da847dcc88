"""Who plays in the rendered data set: games, team kits and the looks of players, referees and coaches.

Colours are BGR tuples of 0-255, as OpenCV draws them.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

SPLITS = ("training", "test", "challenge")
# Eight people a game; the two teams alternate, so that a small set still holds team mates and opponents.
SLOTS = (*"ABABAB", "referee", "coach")

Colour = tuple[int, int, int]


class Difficulty(NamedTuple):
    """What makes a set hard; 1 everywhere is the set that the study was first measured on.

    `alike`: how much of their clothes team mates share, from 0 (own colours for everybody) over 1 (jersey and shorts)
    to 2 (shoes and socks too, and nobody wears extras); `occlusion`: how near others pass; `blur`: motion blur, noise
    and pixels lost; `drift`: how far pose, view, light and size move over the frames.
    """

    alike: float
    occlusion: float
    blur: float
    drift: float


# Fixed before any training by the mAP that colour histograms alone reach (`reid_utils.data.difficulty`; 150 test
# players of 20 frames; lowest and highest of the seeds 0, 1 and 2).
DIFFICULTIES = (
    Difficulty(0.0, 0.3, 0.3, 0.35),  # 0.92 to 0.95
    Difficulty(0.6, 0.6, 0.6, 0.7),  # 0.68 to 0.73
    Difficulty(1.0, 1.0, 1.0, 1.0),  # 0.45 to 0.50
    Difficulty(2.0, 2.0, 2.0, 1.2),  # 0.33 to 0.38
)
DEFAULT_DIFFICULTY = 2

_LIGHT_KITS = ((235, 238, 240), (228, 232, 232), (96, 208, 238), (222, 190, 150), (200, 204, 204))
_DARK_KITS = (
    (36, 34, 32), (92, 44, 26), (40, 36, 176), (168, 78, 30), (58, 104, 34), (104, 40, 92), (44, 26, 96),
    (38, 112, 222),
)  # fmt: skip
_TRIMS = ((240, 240, 240), (30, 30, 30), (40, 170, 230), (50, 40, 190), (150, 70, 30), (90, 150, 60))
_SKINS = ((48, 66, 96), (58, 84, 122), (76, 108, 150), (104, 140, 184), (134, 168, 210), (156, 186, 224))
_HAIRS = ((24, 24, 28), (30, 38, 52), (44, 66, 96), (92, 148, 190), (44, 88, 160), (140, 142, 146))
_SHOES = (
    (238, 238, 238), (30, 30, 32), (44, 40, 200), (190, 90, 36), (60, 200, 230), (70, 210, 130),
    (170, 90, 220), (40, 120, 240), (130, 130, 136), (90, 44, 30),
)  # fmt: skip
_SHIRTS = ((206, 200, 196), (60, 52, 48), (120, 104, 96), (110, 70, 50), (50, 46, 70), (222, 206, 188))
_REFEREE_SHIRTS = ((150, 150, 150), (70, 130, 220), (190, 150, 110))
_HAIR_STYLES = ("bald", "buzz", "short", "short", "afro", "long", "bun")
_ACCENTS = ((238, 238, 238), (32, 32, 34))


@dataclass(frozen=True)
class Kit:
    """What team mates share: jersey, shorts, trim and the look of the numbers, with three numbers."""

    jersey: Colour
    shorts: Colour
    trim: Colour
    numbers: tuple[int, ...]
    shorts_length: float


@dataclass(frozen=True)
class Look:
    """One person's appearance; lengths are shares of body height, `None` where an item is not worn."""

    team: str
    build: float
    legs: float
    head: float
    skin: Colour
    hair: Colour
    hair_style: str
    beard: bool
    top: Colour
    bottom: Colour
    trim: Colour
    number: int | None
    bottom_length: float
    shoes: Colour
    socks: Colour
    sock_height: float
    headband: Colour | None
    undershirt: Colour | None
    arm_sleeves: tuple[Colour | None, Colour | None]
    leg_sleeves: tuple[Colour | None, Colour | None]
    wristbands: tuple[Colour | None, Colour | None]


def generator(seed: int, split: str, stream: int, *index: int) -> np.random.Generator:
    """The random generator of one thing: equal arguments give equal draws, whatever else is rendered."""
    return np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), stream, *index]))


def game_of(player: int) -> int:
    """The game (sequence within the split) in which the player with this index within the split appears."""
    return player // len(SLOTS)


def _pick(rng: np.random.Generator, options: tuple):
    return options[int(rng.integers(len(options)))]


def _vary(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    shifted = np.asarray(colour) + rng.normal(0, spread) + rng.normal(0, spread / 2, 3)
    return tuple(int(value) for value in np.clip(shifted, 8, 248))


def _kit(rng: np.random.Generator, palette: tuple) -> Kit:
    jersey = _vary(rng, _pick(rng, palette), 6)
    trims = [trim for trim in _TRIMS if np.abs(np.subtract(trim, jersey)).sum() > 180]
    trim = _pick(rng, tuple(trims))
    shorts = jersey if rng.random() < 0.8 else trim
    numbers = tuple(int(number) for number in rng.choice(56, 3, replace=False))
    return Kit(jersey, shorts, trim, numbers, float(rng.uniform(0.62, 0.9)))


@lru_cache(maxsize=64)
def kits_of(seed: int, split: str, game: int) -> dict[str, Kit]:
    """The kits `A` (light) and `B` (dark) of a game's two teams."""
    rng = generator(seed, split, 0, game)
    return {"A": _kit(rng, _LIGHT_KITS), "B": _kit(rng, _DARK_KITS)}


def _pair(rng: np.random.Generator, chance: float, colours: tuple) -> tuple[Colour | None, Colour | None]:
    colour = _pick(rng, colours)
    left, right, both = rng.random(3)
    return tuple(colour if draw < chance or both < chance / 3 else None for draw in (left, right))


def _body(rng: np.random.Generator) -> dict:
    skin = _vary(rng, _pick(rng, _SKINS), 7)
    dark = sum(skin) < 330
    return {
        "build": float(rng.uniform(0.84, 1.24)),
        "legs": float(rng.uniform(0.95, 1.06)),
        "head": float(rng.uniform(0.9, 1.12)),
        "skin": skin,
        "hair": _vary(rng, _pick(rng, _HAIRS[:3] if dark else _HAIRS), 5),
        "hair_style": _pick(rng, _HAIR_STYLES),
        "beard": bool(rng.random() < 0.3),
    }


def _player_clothes(rng: np.random.Generator, kit: Kit, slot: int) -> dict:
    accents = (*_ACCENTS, kit.jersey, kit.trim)
    return {
        "top": kit.jersey,
        "bottom": kit.shorts,
        "trim": kit.trim,
        "number": kit.numbers[slot // 2],
        "bottom_length": kit.shorts_length + float(rng.uniform(-0.06, 0.06)),
        "shoes": _vary(rng, _pick(rng, _SHOES), 6),
        "socks": _pick(rng, (*_ACCENTS, kit.trim, *_SHOES)),
        "sock_height": float(rng.uniform(0.15, 0.75)),
        "headband": _pick(rng, accents) if rng.random() < 0.4 else None,
        "undershirt": _pick(rng, accents) if rng.random() < 0.35 else None,
        "arm_sleeves": _pair(rng, 0.3, accents),
        "leg_sleeves": _pair(rng, 0.3, accents),
        "wristbands": _pair(rng, 0.2, accents),
    }


def _staff_clothes(rng: np.random.Generator, role: str) -> dict:
    shirt = _pick(rng, _REFEREE_SHIRTS if role == "referee" else _SHIRTS)
    bottom = (34, 32, 32) if role == "referee" else _pick(rng, ((40, 36, 34), (78, 66, 60), (96, 110, 124)))
    return {
        "top": _vary(rng, shirt, 6),
        "bottom": _vary(rng, bottom, 5),
        "trim": (36, 36, 36),
        "number": None,
        "bottom_length": 1.9,
        "shoes": _pick(rng, ((28, 28, 30), (40, 56, 84), (225, 225, 225))),
        "socks": (40, 40, 40),
        "sock_height": 0.2,
        "headband": None,
        "undershirt": _vary(rng, shirt, 6),
        "arm_sleeves": (shirt, shirt) if role == "coach" and rng.random() < 0.7 else (None, None),
        "leg_sleeves": (None, None),
        "wristbands": (None, None),
    }


def _mixed(colour: Colour, other: np.ndarray, share: float) -> Colour:
    return tuple(round(value) for value in np.asarray(colour) * (1 - share) + np.asarray(other) * share)


def _dressed(look: Look, kit: Kit | None, own: np.ndarray, alike: float) -> Look:
    """The look with clothes of `own` colours (4, 3) below `alike` 1, and like all team mates' above."""
    worn = ("top", "bottom", "shoes", "socks")
    if alike < 1:
        return replace(look, **{name: _mixed(getattr(look, name), own[i], 1 - alike) for i, name in enumerate(worn)})
    if alike == 1 or kit is None:
        return look
    shared = {name: _mixed(getattr(look, name), kit.trim, alike - 1) for name in worn[2:]}
    nothing = (None, None)
    return replace(
        look, **shared, headband=None, undershirt=None, arm_sleeves=nothing, leg_sleeves=nothing, wristbands=nothing
    )


@lru_cache(maxsize=256)
def look_of(seed: int, split: str, player: int, alike: float = 1.0) -> Look:
    """The appearance of the player (or referee, or coach) with this index within the split."""
    kit = kits_of(seed, split, game_of(player)).get(SLOTS[player % len(SLOTS)])
    return _dressed(_look(seed, split, player), kit, generator(seed, split, 7, player).uniform(8, 248, (4, 3)), alike)


def _look(seed: int, split: str, player: int) -> Look:
    slot = player % len(SLOTS)
    team = SLOTS[slot]
    rng = generator(seed, split, 1, player)
    body = _body(rng)
    if team in ("referee", "coach"):
        return Look(team=team, **body, **_staff_clothes(rng, team))
    kit = kits_of(seed, split, game_of(player))[team]
    return Look(team=team, **body, **_player_clothes(rng, kit, slot))
