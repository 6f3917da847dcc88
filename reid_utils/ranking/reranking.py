"""k-reciprocal re-ranking in three variants: from features or from given distances.

Every variant takes the steps of Zhong et al. 2017: neighbour lists, reciprocal sets R(p, k1) and expanded sets
R*(p, k1) (section 3.2), rows of weights (3.3), query expansion over k2 neighbours (3.4), Jaccard distance (3.3), and
the weighted mean with the original distance (3.5). `_steps` has a function for each. `jaccard_weight` w means
final = w · Jaccard + (1 − w) · original; the paper's λ is 1 − w.

- `gaussian`, the 2022 winning entry's code: distances squared a second time; weights exp(−d).
- `hard`, the 2023 winning entry's code: binary membership; gallery images ranked among the gallery only.
- `kreciprocal`, the text of that paper (arXiv:1701.08398): as `gaussian`, distances squared once.
"""

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product
from numbers import Integral

import numpy as np

from reid_utils.ranking import neighbours as nb
from reid_utils.ranking._steps import Problem, blended, sparse_rows
from reid_utils.ranking.distances import check_features, check_matrix, is_tensor

VARIANTS = ("hard", "gaussian", "kreciprocal")


def _check_settings(variant: str, k1s: Iterable, k2s: Iterable, weights: Iterable, in_place: bool) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
    if in_place and variant != "hard":
        raise ValueError(f"in_place=True exists for the hard variant only, not for {variant}")
    for name, value in [*(("k1", k) for k in k1s), *(("k2", k) for k in k2s)]:
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value}")
    for weight in weights:
        if not 0 <= weight <= 1:
            raise ValueError(f"jaccard_weight must lie in [0, 1], not {weight}")


def _warn_if_clipped(k1: int, gallery: int) -> None:
    if k1 > gallery:
        warnings.warn(f"k1={k1} exceeds the gallery; all its {gallery} images are used", stacklevel=4)


def _scale(largest: np.ndarray, variant: str) -> np.ndarray:
    """What each image's distances are divided by: their maximum; 1 for `hard`, which ranks raw distances."""
    if variant == "hard":
        return np.ones_like(largest)
    largest = largest * largest if variant == "gaussian" else largest
    return np.where(largest > 0, largest, np.float32(1))


def _original_term(distances: np.ndarray, scale: np.ndarray, variant: str) -> np.ndarray:
    """Turn (Q, G) distances, in place, into the original term: shares of the maximum, or unit rows (`hard`)."""
    for row, divisor in zip(distances, scale, strict=False):
        if variant == "gaussian":
            np.multiply(row, row, out=row)
        elif variant == "hard":
            divisor = np.linalg.norm(row) or np.float32(1)
        np.divide(row, divisor, out=row)
    return distances


def _hide_other_queries(nearest: nb.Lists, queries: int) -> nb.Lists:
    """The nearest queries of every image, with a query's distances to other queries made infinite."""
    values, indices = nearest.values.copy(), nearest.indices.copy()
    own = np.arange(queries, dtype=np.int32)
    others = np.where(indices[:queries] == own[:, None], -1, indices[:queries])
    others[(others >= 0).all(axis=1), -1] = -1  # pushed out of its own list by copies
    others.sort(axis=1)
    indices[:queries] = np.where(others < 0, own[:, None], others)
    values[:queries] = np.where(others < 0, np.float32(0), np.float32(np.inf))
    return nb.Lists(values, indices)


def _problem(search: nb.Search, query, gallery, variant: str, query_query: bool = True) -> Problem:
    """The variant's problem from a search over features; its `query_gallery` becomes the original term."""
    from reid_utils.ranking._search_kernels import fill_from_features

    square, queries = variant == "gaussian", len(query)
    hidden = 0 if query_query else queries
    nearest_queries, largest = search.nearest_queries, search.largest.copy()
    if hidden:
        nearest_queries = _hide_other_queries(nearest_queries, queries)
        largest[:queries, 0] = 0
    scale = _scale(largest.max(axis=1), variant)
    lists = []
    for part in (nearest_queries, search.nearest_gallery):
        values = part.values * part.values if square else part.values
        lists.append(nb.Lists(values / scale[:, None], part.indices))
    original = _original_term(search.query_gallery, scale, variant)
    return Problem(*lists, original, partial(fill_from_features, query, gallery, hidden, square, scale))


def _search(query, gallery, k1: int, k2: int) -> tuple[nb.Search, np.ndarray, np.ndarray]:
    """Check the features and search on the device where they are; the features come back as arrays."""
    tensors = (query, gallery)
    query, gallery = check_features(query, gallery)
    _warn_if_clipped(k1, len(gallery))
    k = max(k1 + 1, k2)
    if is_tensor(tensors[0]) and tensors[0].device.type != "cpu":
        return nb.search_tensors(*tensors, k), query, gallery
    return nb.search_features(query, gallery, k), query, gallery


def rerank(
    query,
    gallery,
    variant: str = "hard",
    k1: int = 20,
    k2: int = 6,
    jaccard_weight: float = 0.7,
    in_place: bool = False,
    *,
    query_query: bool = True,
) -> np.ndarray:
    """Re-ranked distances (Q, G) float32 from query (Q, d) and gallery (G, d) features.

    Exact, in memory of N·k plus the result. Tensors are searched on their own device; the result is an array.
    `in_place` (`hard` only) repeats the published code's order-dependent query expansion; without it the
    result does not depend on the images' order. `query_query=False` leaves out distances between queries.
    Warns where k1 exceeds the gallery; raises ValueError for NaN, unequal widths or impossible settings.
    """
    _check_settings(variant, [k1], [k2], [jaccard_weight], in_place)
    search, query, gallery = _search(query, gallery, k1, k2)
    problem = _problem(search, query, gallery, variant, query_query)
    rows = sparse_rows(problem, variant, k1, k2)
    return blended(problem, rows, variant, jaccard_weight, in_place, problem.original)


def _check_blocks(query_gallery, query_query, gallery_gallery) -> tuple[np.ndarray, ...]:
    """The three matrices as float32 in the order (Q, Q), (Q, G), (G, G); an infinite (Q, Q) where None."""
    query_gallery = check_matrix(query_gallery, "query-gallery distances").astype(np.float32, copy=False)
    gallery_gallery = check_matrix(gallery_gallery, "gallery-gallery distances").astype(np.float32, copy=False)
    queries, gallery = query_gallery.shape
    if query_query is None:
        query_query = np.full((queries, queries), np.inf, np.float32)
        np.fill_diagonal(query_query, 0)
    else:
        query_query = check_matrix(query_query, "query-query distances").astype(np.float32, copy=False)
    for name, matrix, size in (("query-query", query_query, queries), ("gallery-gallery", gallery_gallery, gallery)):
        if matrix.shape != (size, size):
            raise ValueError(f"{name} distances must be of shape {(size, size)}, not {matrix.shape}")
    return query_query, query_gallery, gallery_gallery


def _problem_from_blocks(blocks: tuple[np.ndarray, ...], variant: str, k1: int, k2: int) -> Problem:
    """The variant's problem from matrices in the order (Q, Q), (Q, G), (G, G)."""
    from reid_utils.ranking._search_kernels import fill_from_blocks

    query_query, query_gallery, gallery_gallery = blocks
    square = variant == "gaussian"
    between = np.where(np.isinf(query_query), 0, np.abs(query_query)).max(axis=1)
    largest = np.concatenate(
        [
            np.maximum(between, query_gallery.max(axis=1)),
            np.maximum(query_gallery.max(axis=0), gallery_gallery.max(axis=1)),
        ]
    )
    scale = _scale(largest, variant)
    _warn_if_clipped(k1, len(gallery_gallery))
    lists = nb.search_blocks(blocks, max(k1 + 1, k2), square, scale)
    original = _original_term(query_gallery.copy(), scale, variant)
    return Problem(*lists, original, partial(fill_from_blocks, *blocks, square, scale))


def rerank_distances(
    query_gallery,
    query_query,
    gallery_gallery,
    variant: str = "hard",
    k1: int = 20,
    k2: int = 6,
    jaccard_weight: float = 0.7,
    in_place: bool = False,
) -> np.ndarray:
    """Re-ranked distances (Q, G) float32 from squared Euclidean distances (Q, G), (Q, Q) and (G, G).

    Settings and errors as in `rerank`. `query_query=None` leaves out distances between queries. Given what the
    published codes were given, `gaussian` and `hard` with `in_place` return what they return.
    """
    _check_settings(variant, [k1], [k2], [jaccard_weight], in_place)
    blocks = _check_blocks(query_gallery, query_query, gallery_gallery)
    problem = _problem_from_blocks(blocks, variant, k1, k2)
    rows = sparse_rows(problem, variant, k1, k2)
    return blended(problem, rows, variant, jaccard_weight, in_place, problem.original)


def rerank_sweep(
    query,
    gallery,
    variant: str = "hard",
    k1s: Iterable[int] = (20,),
    k2s: Iterable[int] = (6,),
    jaccard_weights: Iterable[float] = (0.7,),
    in_place: bool = False,
) -> Iterator[tuple[tuple[int, int, float], np.ndarray]]:
    """Yield ((k1, k2, jaccard_weight), distances) for every combination, from one neighbour search.

    Arguments and errors as in `rerank`, with which each yielded (Q, G) array agrees.
    """
    k1s, k2s, weights = list(k1s), list(k2s), list(jaccard_weights)
    _check_settings(variant, k1s, k2s, weights, in_place)
    search, query, gallery = _search(query, gallery, max(k1s), max(k2s))
    problem = _problem(search, query, gallery, variant)
    for k1, k2 in product(k1s, k2s):
        rows = sparse_rows(problem, variant, k1, k2)
        jaccard = blended(problem, rows, variant, 1.0, in_place, np.empty_like(problem.original))
        for weight in weights:
            yield (k1, k2, weight), np.float32(weight) * jaccard + np.float32(1 - weight) * problem.original


def rerank_one_by_one(
    query,
    gallery,
    variant: str = "hard",
    k1: int = 20,
    k2: int = 6,
    jaccard_weight: float = 0.7,
) -> np.ndarray:
    """Re-ranked distances (Q, G) float32 where each query is alone with the gallery, as in a live search.

    Arguments and errors as in `rerank`, with which it agrees for a single query. One neighbour search serves all.
    """
    _check_settings(variant, [k1], [k2], [jaccard_weight], False)
    search, query, gallery = _search(query, gallery, k1, k2)
    queries = len(query)
    out = np.empty_like(search.query_gallery)
    for number in range(queries):
        images = np.r_[number, queries : queries + len(gallery)]
        distances = search.query_gallery[number]
        to_query = np.r_[np.float32(0), distances]
        nearest = nb.Lists(to_query[:, None], np.zeros((len(images), 1), np.int32))
        in_gallery = nb.Lists(*(part[images] for part in search.nearest_gallery))
        in_gallery = in_gallery._replace(indices=in_gallery.indices - np.int32(queries - 1))
        largest = np.stack([to_query, search.largest[images, 1]], axis=1)
        alone = nb.Search(nearest, in_gallery, largest, distances[None].copy())
        problem = _problem(alone, query[number : number + 1], gallery, variant)
        rows = sparse_rows(problem, variant, k1, k2)
        blended(problem, rows, variant, jaccard_weight, False, out[number : number + 1])
    return out
