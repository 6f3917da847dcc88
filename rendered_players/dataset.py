"""A rendered data set of basketball-player crops in the Synergy layout, the same from the same seed."""

import csv
import json
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import cv2

from rendered_players import FOLDERS
from rendered_players.crops import render_crop
from rendered_players.rosters import DEFAULT_DIFFICULTY, DIFFICULTIES, SLOTS, game_of, generator

RENDERER_VERSION = 1
# Not written down where it is in force: its sets are older than the setting, and stay what they are.
_DEFAULT = {"difficulty": DEFAULT_DIFFICULTY}


class _Job(NamedTuple):
    """One image to render; `player` counts within the split, `label` and `sequence` are what names show."""

    path: str
    split: str
    player: int
    frame: int
    label: str
    sequence: str


def _challenge_ids(seed: int, count: int) -> list[int]:
    """Random six-digit image ids, none twice: neither a name nor its order tells the player."""
    return (generator(seed, "challenge", 6).choice(900_000, count, replace=False) + 100_000).tolist()


def _jobs(settings: dict, split: str, players: int, frames: int, first: tuple[int, int]) -> list[_Job]:
    """The images of one split; `first` numbers its first player and its first sequence (game)."""
    ids = _challenge_ids(settings["seed"], players * frames) if split == "challenge" else []
    jobs = []
    for index in range(players * frames):
        player, frame = divmod(index, frames)
        label, sequence = f"{first[0] + player:03d}", f"{first[1] + game_of(player):03d}"
        name = ids[index] if ids else f"{label}_{sequence}_{frame:02d}"
        role = "" if split == "training" else "/query" if frame == 0 else "/gallery"
        jobs.append(_Job(f"reid_{split}{role}/{name}.jpeg", split, player, frame, label, sequence))
    return jobs


def _all_jobs(settings: dict) -> list[_Job]:
    jobs, player, game = [], 1, 0
    for split, setting in (("training", "train"), ("test", "test"), ("challenge", "challenge")):
        players = settings[f"{setting}_players"]
        frames = settings["frames" if split == "training" else "test_frames"]
        jobs += _jobs(settings, split, players, frames, (player, game))
        player, game = player + players, game + -(-players // len(SLOTS))
    return jobs


def _render_game(jobs: list[_Job], folder: Path, seed: int, height: int, difficulty: int) -> list[dict]:
    """Write the images of one game; returns their rows of `nuisances.csv`."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    rows = []
    try:
        for job in jobs:
            data, nuisances = render_crop(seed, job.split, job.player, job.frame, height, difficulty)
            (folder / job.path).write_bytes(data)
            row = {"path": job.path, "sequence": job.sequence} | nuisances
            rows.append(row | {"sequence": "", "team": ""} if job.split == "challenge" else row)
    finally:
        cv2.setNumThreads(threads)
    return rows


def _end_with_parent() -> None:
    """Make a worker process end when its parent is killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _render_all(jobs: list[_Job], folder: Path, settings: dict, workers: int) -> list[dict]:
    games = [list(group) for _, group in groupby(jobs, key=lambda job: (job.split, game_of(job.player)))]
    chosen = {name: (_DEFAULT | settings)[name] for name in ("seed", "height", "difficulty")}
    render = partial(_render_game, folder=folder, **chosen)
    if workers == 1:
        return list(chain.from_iterable(map(render, games)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        return list(chain.from_iterable(pool.map(render, games)))


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["path"]))


def _write_data_set(folder: Path, settings: dict, workers: int) -> None:
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    jobs = _all_jobs(settings)
    _write_csv(folder / "nuisances.csv", _render_all(jobs, folder, settings, workers))
    hidden = [job for job in jobs if job.split == "challenge"]
    truth = [{"path": job.path, "image_id": Path(job.path).stem, "player": job.label} for job in hidden]
    _write_csv(folder / "challenge_truth.csv", truth)
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "rendering.json").write_text(text, encoding="utf-8")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _check(settings: dict, workers: int) -> None:
    least = {"seed": 0, "difficulty": 0, "frames": 2, "test_frames": 2, "height": 32}
    for name, value in (settings | {"workers": workers}).items():
        if type(value) is not int or value < least.get(name, 1):
            raise ValueError(f"{name} is {value!r}: give a whole number of at least {least.get(name, 1)}")
    if (level := settings.get("difficulty", 0)) >= len(DIFFICULTIES):
        raise ValueError(f"difficulty is {level}: give a level from 0 (easy) to {len(DIFFICULTIES) - 1} (hard)")
    if settings["challenge_players"] * settings["test_frames"] > 900_000:
        raise ValueError("challenge_players times test_frames goes up to 900000, the number of six-digit image ids")
    if max(settings["frames"], settings["test_frames"]) > 100:
        raise ValueError("frames and test_frames go up to 100: a file name has two digits for them")


def _already_rendered(out_dir: Path, settings: dict) -> bool:
    """Whether `out_dir` holds exactly this data set; raises ValueError where it holds something else."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    record = out_dir / "rendering.json"
    if not record.is_file():
        raise ValueError(f"{out_dir} exists and holds no rendering.json: give another folder or remove it")
    found = _DEFAULT | json.loads(record.read_text(encoding="utf-8"))
    settings = _DEFAULT | settings
    for name in sorted(settings | found):
        if found.get(name) != settings.get(name):
            was, wanted = found.get(name), settings.get(name)
            raise ValueError(
                f"{out_dir} was rendered with {name} {was}, not {wanted}: give another folder or remove it"
            )
    return True


def render_dataset(
    out_dir: str | Path,
    seed: int = 0,
    train_players: int = 150,
    test_players: int = 150,
    challenge_players: int = 40,
    frames: int = 20,
    test_frames: int = 20,
    height: int = 128,
    difficulty: int = DEFAULT_DIFFICULTY,
    workers: int = 1,
) -> Path:
    """Render a data set in the Synergy layout into `out_dir` and return that folder as a Path.

    Every player has `frames` training images, or `test_frames` test or challenge images: frame 00 is the query, the
    others are the gallery. Eight people share a sequence (a game): two teams of three, a referee, a coach. Images
    are about `height` pixels high. Beside them lie `nuisances.csv` (a row an image: path, sequence and the values
    that `crops.render_crop` gives; sequence and team are blank for the challenge), `challenge_truth.csv` (path,
    image_id, player: for scoring alone) and `rendering.json` (the settings in force). An image's bytes depend on
    seed, split, player, frame, height and difficulty alone, not on `workers` or the number of other images. `workers`
    above 1 starts that many processes: a script (not a notebook) then needs its `if __name__ == "__main__":` guard.
    `difficulty` is a level of `rosters.DIFFICULTIES`, 0 (easy) to 3 (hard), fixed by what colour histograms alone find
    (see there) before any training.

    The folder appears whole or not at all. One that holds the same settings is returned untouched; ValueError
    where it holds anything else, or where a setting is out of range.
    """
    out_dir = Path(out_dir).absolute()
    settings = {
        "renderer_version": RENDERER_VERSION, "seed": seed, "train_players": train_players,
        "test_players": test_players, "challenge_players": challenge_players, "frames": frames,
        "test_frames": test_frames, "height": height,
    }  # fmt: skip
    settings |= {} if difficulty == DEFAULT_DIFFICULTY else {"difficulty": difficulty}
    _check(settings, workers)
    if _already_rendered(out_dir, settings):  # and may lie in a folder that cannot be written
        return out_dir
    from filelock import FileLock

    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial_dir = out_dir.with_name(f".{out_dir.name}.partial")
    with FileLock(out_dir.with_name(f".{out_dir.name}.lock")):
        if _already_rendered(out_dir, settings):
            return out_dir
        # Under the lock, an unfinished folder can only be what a killed run has left.
        _remove(partial_dir)
        try:
            _write_data_set(partial_dir, settings, workers)
            partial_dir.replace(out_dir)
        finally:
            _remove(partial_dir)
    return out_dir
