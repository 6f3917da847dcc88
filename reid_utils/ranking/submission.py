"""The challenge's distance CSV: written as its toolkit writes it, read back with checks.

First row: 0, then the gallery ids. Every further row: a query id, then its distances as `%10.5f`.
"""

from pathlib import Path

import numpy as np

from reid_utils.files import replacing
from reid_utils.ranking.distances import check_matrix
from reid_utils.ranking.labels import as_ids

_EXACT = 2**53  # from here on neighbouring ids are read as the same number


def write_distance_csv(path, distances, query_ids, gallery_ids) -> None:
    """Write the challenge CSV, byte for byte what the toolkit's `numpy.savetxt` writes; atomically.

    `distances` (Q, G); ids (Q,) and (G,) whole numbers. Raises ValueError naming the row for NaN, and for ids of
    another kind or number.
    """
    distances = check_matrix(distances, "distances")
    query_ids, gallery_ids = as_ids(query_ids, "query_ids"), as_ids(gallery_ids, "gallery_ids")
    for name, ids in (("query_ids", query_ids), ("gallery_ids", gallery_ids)):
        if ids.dtype.kind == "U":
            raise ValueError(f"{name} must be whole numbers for the challenge CSV, not text")
    if distances.shape != (len(query_ids), len(gallery_ids)):
        raise ValueError(
            f"distances of shape {distances.shape} do not fit {len(query_ids)} query and {len(gallery_ids)} gallery ids"
        )
    template = ",%10.5f" * len(gallery_ids) + "\n"
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{Path(path).parent} is no folder; make it first, or name another place for the CSV")
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="") as file:
        file.write("0" + "".join(f",{gallery_id}" for gallery_id in gallery_ids.tolist()) + "\n")
        for query_id, row in zip(query_ids.tolist(), distances, strict=True):
            file.write(str(query_id) + template % tuple(row.tolist()))


def _id_column(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    bad = np.flatnonzero((values != np.trunc(values)) | (np.abs(values) >= _EXACT))
    if bad.size:
        raise ValueError(f"{path}: {name} id at position {bad[0]} is {values[bad[0]]}, not a whole number below 2^53")
    return values.astype(np.int64)


def _read_table(path: Path) -> np.ndarray:
    """The numbers of a CSV; with semicolons, as spreadsheets write, a comma is the decimal sign."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if lines and ";" in lines[0]:
        lines = [line.replace(",", ".").replace(";", ",") for line in lines]
    return np.loadtxt(lines, delimiter=",", ndmin=2)


def read_distance_csv(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a challenge CSV: (distances (Q, G) float64, query_ids (Q,) int64, gallery_ids (G,) int64).

    A byte order mark and semicolons are understood. Raises FileNotFoundError, or ValueError naming the file and the
    row, for ragged rows, words, NaN, a first cell other than 0, ids that are not whole numbers, or no data.
    """
    path = Path(path)
    try:
        table = _read_table(path)
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
