"""The challenge's distance CSV: written as its toolkit writes it, read back with checks, and scored.

First row: 0, then the gallery ids. Every further row: a query id, then its distances as `%10.5f`.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from reid_utils.ranking.distances import check_matrix
from reid_utils.ranking.metrics import average_precisions, first_match_ranks, mean_inverse_negative_penalty
from reid_utils.ranking.neighbours import thread_count

_BLOCK = 16  # rows that a thread formats at a time
_EXACT = 2**53  # from here on neighbouring ids are read as the same number
_AT_ONCE = 512  # rows that stand in memory as text


def _whole_ids(ids, name: str) -> np.ndarray:
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be whole numbers for the challenge CSV, not {ids.dtype}")
    return ids


def _formatted(distances: np.ndarray, query_ids: np.ndarray, start: int, stop: int) -> memoryview:
    """The CSV lines of some rows; values too large for the compiled writer go through Python's formatting."""
    from reid_utils.ranking._csv_kernels import LARGEST, WIDEST, format_row

    if not np.abs(distances[start:stop]).max() < LARGEST:
        rows = zip(query_ids[start:stop].tolist(), distances[start:stop].tolist(), strict=True)
        lines = (str(query_id) + "".join(f",{value:10.5f}" for value in row) + "\n" for query_id, row in rows)
        return memoryview("".join(lines).encode())
    buffer = np.empty((stop - start) * (distances.shape[1] * WIDEST + 22), np.uint8)
    place = 0
    for row in range(start, stop):
        query_id = np.frombuffer(str(query_ids[row]).encode(), np.uint8)
        buffer[place : place + query_id.size] = query_id
        place = format_row(distances[row], buffer, place + query_id.size)
        buffer[place] = ord("\n")
        place += 1
    return memoryview(buffer)[:place]


def _write(file, distances: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> None:
    header = "".join(f",{gallery_id}" for gallery_id in gallery_ids.tolist())
    file.write(f"0{header}\n".encode())
    with ThreadPoolExecutor(thread_count()) as pool:
        for group in range(0, len(distances), _AT_ONCE):
            starts = range(group, min(group + _AT_ONCE, len(distances)), _BLOCK)
            stops = [min(start + _BLOCK, len(distances)) for start in starts]
            for lines in pool.map(partial(_formatted, distances, query_ids), starts, stops):
                file.write(lines)  # while the next blocks are being formatted


def write_distance_csv(path, distances, query_ids, gallery_ids) -> None:
    """Write the challenge CSV, byte for byte what the toolkit's `numpy.savetxt` writes; atomically.

    `distances` (Q, G); whole-number ids (Q,) and (G,). Raises ValueError for NaN, other ids or other lengths.
    """
    path, distances = Path(path), check_matrix(distances, "distances")
    query_ids, gallery_ids = _whole_ids(query_ids, "query_ids"), _whole_ids(gallery_ids, "gallery_ids")
    if distances.shape != (len(query_ids), len(gallery_ids)):
        raise ValueError(
            f"distances of shape {distances.shape} do not fit {len(query_ids)} query and {len(gallery_ids)} gallery ids"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            _write(file, distances, query_ids, gallery_ids)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _id_column(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    bad = np.flatnonzero((values != np.trunc(values)) | (np.abs(values) >= _EXACT))
    if bad.size:
        raise ValueError(f"{path}: {name} id at position {bad[0]} is {values[bad[0]]}, not a whole number below 2^53")
    return values.astype(np.int64)


def read_distance_csv(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a challenge CSV: (distances (Q, G) float64, query_ids (Q,) int64, gallery_ids (G,) int64).

    Raises FileNotFoundError, or ValueError naming the file and the row, for ragged rows, words, NaN, a first cell
    other than 0, ids that are not whole numbers, or no data.
    """
    path = Path(path)
    try:
        table = np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is not a distance CSV: {error}") from error
    if min(table.shape) < 2:
        raise ValueError(f"{path} holds {table.shape} values; it needs a row of gallery ids and a row for each query")
    if table[0, 0] != 0:
        raise ValueError(
            f"{path}: the first cell is {table[0, 0]:g}, not 0; the first row must be 0 and the gallery ids"
        )
    distances = check_matrix(table[1:, 1:], f"{path}: distances")
    return distances, _id_column(table[1:, 0], path, "query"), _id_column(table[0, 1:], path, "gallery")


def _players(ids: np.ndarray, players: Mapping | None, path, name: str) -> np.ndarray:
    if players is None:
        return ids
    missing = [image for image in ids.tolist() if image not in players]
    if missing:
        raise ValueError(f"{path}: no player is known for {name} image {missing[0]}; the ids are of another split")
    return np.array([players[image] for image in ids.tolist()])


def score_distance_csv(path, query_players: Mapping | None = None, gallery_players: Mapping | None = None) -> dict:
    """mAP, rank-1, rank-5, rank-10 and mINP of a challenge CSV, with its counts of queries.

    The ids in the file are taken for players unless `query_players` and `gallery_players` map image ids to them
    (the challenge split with its truth). Cameras are as in the challenge: nothing is junk. Errors as in
    `read_distance_csv`, and ValueError where no query has a match.
    """
    distances, query_ids, gallery_ids = read_distance_csv(path)
    query_ids = _players(query_ids, query_players, path, "query")
    gallery_ids = _players(gallery_ids, gallery_players, path, "gallery")
    precisions = average_precisions(distances, query_ids, gallery_ids)
    ranks = first_match_ranks(distances, query_ids, gallery_ids)
    ranks = ranks[~np.isnan(ranks)]
    return {
        "mAP": float(np.nanmean(precisions)),
        **{f"rank-{k}": float((ranks <= k).mean()) for k in (1, 5, 10)},
        "mINP": mean_inverse_negative_penalty(distances, query_ids, gallery_ids),
        "queries": len(query_ids),
        "queries_without_match": len(query_ids) - len(ranks),
    }
