"""Who matches whom: players and cameras of queries and gallery images.

A gallery image of the query's own player and camera is junk and left out of its ranking. Player -1 is nobody: such a
gallery image (Market-1501's junk) is left out of every ranking, and such a query (the hidden challenge split) is never
scored. Player 0, Market-1501's distractors, needs no rule: no query is of that player, so its images count as wrong.
Camera -1 is unknown and never the same as another.
"""

from typing import NamedTuple

import numpy as np


class Labels(NamedTuple):
    """Players (Q,) and (G,), whole numbers or text, and cameras alike; without cameras nothing is junk."""

    query_players: np.ndarray
    gallery_players: np.ndarray
    query_cameras: np.ndarray | None = None
    gallery_cameras: np.ndarray | None = None


def labels_of(model) -> Labels:
    """The labels of a model of `load_features` or `load_folder`, for `score(distances, *labels_of(model))`."""
    return Labels(*(model.get(name) for name in Labels._fields))


def as_ids(values, name: str) -> np.ndarray:
    """Ids of any integer or text type as int64 or text; as Python integers where one does not fit into int64.

    Raises ValueError naming them for fractions, whole floats that may have lost digits, and mixed types.
    """
    ids = np.asarray(values)
    # From 2^(mantissa + 1) on a float holds neighbouring whole numbers as the same.
    exact = 2.0 ** (np.finfo(ids.dtype).nmant + 1) if ids.dtype.kind == "f" else 0
    if exact and (ids == np.trunc(ids)).all() and (np.abs(ids) < exact).all():
        return ids.astype(np.int64)
    if ids.dtype.kind in "Uf" and not isinstance(values, np.ndarray):
        ids = np.asarray(values, object)  # numpy has turned the numbers of a mixed list into text or fractions
    if ids.dtype.kind in "ST" or (ids.dtype.kind == "O" and all(isinstance(value, str) for value in ids.flat)):
        return ids.astype(np.str_)
    if ids.dtype.kind == "O" and not all(isinstance(value, int | np.integer) for value in ids.flat):
        raise ValueError(f"{name} must be whole numbers or text throughout, not a mixture")
    if ids.dtype.kind not in "iubUO":
        raise ValueError(f"{name} must be whole numbers or text, not {ids.dtype}")
    if ids.dtype.kind in "uO" and ids.size and ids.max() > np.iinfo(np.int64).max:
        return ids.astype(object)
    return ids if ids.dtype.kind == "U" else ids.astype(np.int64)


def check_same_kind(first, other, names: tuple[str, str]) -> None:
    """Raise ValueError where one of two arrays from `as_ids` is text and the other is numbers: 7 is not '7'."""
    kinds = ["text" if ids.dtype.kind == "U" else "whole numbers" for ids in (first, other)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{names[0]} are {kinds[0]}, {names[1]} {kinds[1]}; write both as the same kind")


def known(ids: np.ndarray) -> np.ndarray:
    """Mask of ids that are not -1."""
    return ids != ("-1" if ids.dtype.kind == "U" else -1)


def _codes(query, gallery, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Number the values of both arrays alike, from 0; -1 stays -1."""
    query, gallery = as_ids(query, names[0]), as_ids(gallery, names[1])
    check_same_kind(query, gallery, names)
    both = np.concatenate([query, gallery])
    _, codes = np.unique(both, return_inverse=True)
    codes[~known(both)] = -1
    return codes[: len(query)], codes[len(query) :]


def coded(shape, query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> Labels:
    """Labels of a (Q, G) matrix as int64 codes; cameras 0 for queries and 1 for gallery images where None.

    Raises ValueError for labels of the wrong length or kind, and where only one side has cameras.
    """
    if (query_cams is None) != (gallery_cams is None):
        given, missing = ("query", "gallery") if gallery_cams is None else ("gallery", "query")
        raise ValueError(f"{given} cameras are given, {missing} cameras are not; give both or neither")
    if query_cams is None:
        query_cams, gallery_cams = np.zeros(shape[0], np.int64), np.ones(shape[1], np.int64)
    given = {"query_ids": (query_ids, 0), "gallery_ids": (gallery_ids, 1)}
    given |= {"query_cams": (query_cams, 0), "gallery_cams": (gallery_cams, 1)}
    for name, (labels, axis) in given.items():
        if np.shape(labels) != (shape[axis],):
            raise ValueError(
                f"{name} has shape {np.shape(labels)}, but distances of shape {shape} need {shape[axis]} of them"
            )
    players = _codes(query_ids, gallery_ids, ("query_ids", "gallery_ids"))
    query_cams, gallery_cams = _codes(query_cams, gallery_cams, ("query_cams", "gallery_cams"))
    return Labels(*players, query_cams, np.where(gallery_cams == -1, -2, gallery_cams))  # unknown: never the same


def matches_of(labels: Labels, query: int) -> np.ndarray:
    """Places in the gallery of one query's matches, ascending, from `coded` labels."""
    player = labels.query_players[query]
    own = np.flatnonzero(labels.gallery_players == player) if player != -1 else np.empty(0, np.int64)
    return own[labels.gallery_cameras[own] != labels.query_cameras[query]]


def others_of(labels: Labels, query: int, images: np.ndarray) -> np.ndarray:
    """Those of some gallery images (places, ascending) that count as wrong for a query: other, known players'."""
    players = labels.gallery_players[images]
    return images[(players != labels.query_players[query]) & (players != -1)]


def matches(query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> tuple[np.ndarray, np.ndarray]:
    """Masks (Q, G) of the matches and of the junk; arguments and errors as in `average_precisions`."""
    shape = (len(query_ids), len(gallery_ids))
    labels = coded(shape, query_ids, gallery_ids, query_cams, gallery_cams)
    hits, junk, images = np.zeros(shape, bool), np.ones(shape, bool), np.arange(shape[1])
    for query in range(shape[0]):
        hits[query, matches_of(labels, query)] = True
        junk[query, others_of(labels, query, images)] = False
    return hits, junk & ~hits
