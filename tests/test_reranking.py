"""Re-ranking: equal to the published codes, to a dense textbook version, and independent of order and threads."""

import os
import subprocess
import sys
import tracemalloc
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from reid_utils.ranking import neighbours, rerank, rerank_distances, rerank_sweep, squared_euclidean

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
LARGE = Path(__file__).resolve().parents[2] / "shared" / "golden" / "c8_50x910.npz"
VARIANTS = ("hard", "gaussian", "kreciprocal")


def load(path):
    if not path.exists():
        pytest.skip(f"{path.name} is kept outside the project and is not here")
    case = np.load(path, allow_pickle=False)
    return case, (int(case["k1"]), int(case["k2"]), float(case["lambda_value"]))


def players(queries=12, gallery=150, width=16, noise=0.7, seed=0):
    """Unit features of a dozen players, float32."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, width))
    labels = np.r_[np.arange(queries) % 12, rng.integers(0, 12, gallery)]
    images = centres[labels] + noise * rng.normal(size=(len(labels), width))
    images = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    return images[:queries], images[queries:]


def dense_reranking(query, gallery, power, k1, k2, weight, query_query=True):
    """k-reciprocal re-ranking as Zhong et al. 2017 write it, with whole N × N matrices in float64."""
    images, queries = np.concatenate([query, gallery]).astype(np.float64), len(query)
    distances = ((images[:, None] - images[None]) ** 2).sum(axis=2) ** power
    if not query_query:
        distances[:queries, :queries] = np.where(np.eye(queries), 0, np.inf)
    distances /= distances.max(axis=1, keepdims=True, where=np.isfinite(distances), initial=0)
    ranks = np.argsort(distances, axis=1, kind="stable")

    def reciprocal(k):
        near = np.zeros(distances.shape, bool)
        np.put_along_axis(near, ranks[:, :k], True, axis=1)
        return near & near.T

    full, half = reciprocal(k1 + 1), reciprocal(round(k1 / 2) + 1)
    shared = half.astype(int) @ full.T.astype(int)  # shared[c, i] = |R½(c) ∩ R(i)|
    rows = np.zeros(distances.shape)
    for i in range(len(images)):
        members = full[i].copy()
        for c in np.flatnonzero(full[i]):
            if 3 * shared[c, i] > 2 * half[c].sum():
                members |= half[c]
        rows[i, members] = np.exp(-distances[i, members])
        rows[i] /= rows[i].sum()
    rows = np.stack([rows[ranks[i, :k2]].mean(axis=0) for i in range(len(images))])
    smaller = np.minimum(rows[:queries, None], rows[None, queries:]).sum(axis=2)
    return weight * (1 - smaller / (2 - smaller)) + (1 - weight) * distances[:queries, queries:]


@pytest.mark.filterwarnings("ignore:k1=20 exceeds the gallery")
@pytest.mark.parametrize("path", [*GOLDEN, LARGE], ids=lambda path: path.stem[:2])
def test_gaussian_equals_the_published_code(path):
    case, settings = load(path)
    found = rerank_distances(case["dist_qg"], case["dist_qq"], case["dist_gg"], "gaussian", *settings)
    np.testing.assert_allclose(found, case["rerank_stable"], atol=1e-5)
    found = rerank(case["query"], case["gallery"], "gaussian", *settings)
    np.testing.assert_allclose(found, case["rerank_float64_stable"], atol=1e-5)


@pytest.mark.parametrize("path", [*GOLDEN[:-1], LARGE], ids=lambda path: path.stem[:2])
def test_hard_equals_the_published_code(path):
    case, settings = load(path)
    n, distances = len(case["query"]), case["dist_all"]
    blocks = (distances[:n, n:], distances[:n, :n], distances[n:, n:])
    found = rerank_distances(*blocks, "hard", *settings, in_place=True)
    np.testing.assert_allclose(found, case["hard_stable"], atol=1e-5)
    found = rerank(case["query"], case["gallery"], "hard", *settings, in_place=True)
    np.testing.assert_allclose(found, case["hard_stable"], atol=1e-5)


@pytest.mark.parametrize(("variant", "power"), [("kreciprocal", 1), ("gaussian", 2)])
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 1), (5, 8)])
def test_textbook_version(variant, power, k1, k2):
    query, gallery = players()
    found = rerank(query, gallery, variant, k1, k2, 0.6)
    np.testing.assert_allclose(found, dense_reranking(query, gallery, power, k1, k2, 0.6), atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_their_distances_agree(variant):
    query, gallery = players()
    blocks = squared_euclidean(query, gallery), squared_euclidean(query, query), squared_euclidean(gallery, gallery)
    for matrix in blocks[1:]:
        np.fill_diagonal(matrix, 0)
    np.testing.assert_allclose(rerank_distances(*blocks, variant), rerank(query, gallery, variant), atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_images_does_not_matter(variant):
    query, gallery = players(queries=30, gallery=400)
    rng = np.random.default_rng(5)
    rows, columns = rng.permutation(len(query)), rng.permutation(len(gallery))
    found = rerank(query[rows], gallery[columns], variant)
    np.testing.assert_allclose(found, rerank(query, gallery, variant)[rows][:, columns], atol=2e-6)


@pytest.mark.filterwarnings("ignore:k1=.* exceeds the gallery")
@pytest.mark.parametrize(("variant", "power"), [("kreciprocal", 1), ("gaussian", 2)])
@pytest.mark.parametrize(("queries", "gallery"), [(2, 3), (5, 4), (12, 60), (1, 9), (40, 8)])
def test_hidden_queries_against_the_dense_version(variant, power, queries, gallery):
    sides = players(queries, gallery, noise=0.3)
    for k1, k2 in ((20, 6), (4, 1), (3, 5)):
        expected = dense_reranking(*sides, power, k1, k2, 0.6, query_query=False)
        found = rerank(*sides, variant, k1, k2, 0.6, query_query=False)
        np.testing.assert_allclose(found, expected, atol=1e-5)


BOUNDS = """
import itertools, warnings
import numpy as np
from reid_utils.ranking import *
warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
for queries, gallery, k1, k2 in itertools.product((1, 2, 5, 40), (1, 3, 10, 25), (20, 4, 1), (6, 1)):
    q, g = (rng.normal(size=(n, 8)).astype(np.float32) for n in (queries, gallery))
    g[gallery // 2 :] = g[0]  # equal images
    qg, qq, gg = squared_euclidean(q, g), squared_euclidean(q, q), squared_euclidean(g, g)
    for variant, in_place in (("hard", False), ("hard", True), ("gaussian", False), ("kreciprocal", False)):
        settings = variant, k1, k2, 0.7, in_place
        found = [rerank(q, g, *settings, query_query=known) for known in (True, False)]
        found += [rerank_distances(qg, between, gg, *settings) for between in (qq, None)]
        assert np.isfinite(found).all() and np.min(found) >= 0, (queries, gallery, settings)
    list(rerank_sweep(q, g, "gaussian", [k1, 2], [k2, 3]))
    dissimilarity_fusion([qg, 1 - qg, np.ones_like(qg)], k1)
print("inside")
"""


def test_no_kernel_reads_or_writes_outside_its_arrays(tmp_path):
    # a cache of its own: numba does not tell checked code from unchecked in it
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", BOUNDS], capture_output=True, text=True, env=environment)
    assert done.stdout == "inside\n", done.stderr[-2000:]


def test_published_expansion_depends_on_order():
    query, gallery = players()
    columns = np.random.default_rng(6).permutation(len(gallery))
    found = rerank(query, gallery[columns], in_place=True)
    assert np.abs(found - rerank(query, gallery, in_place=True)[:, columns]).max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_threads_gives_the_same_bits(variant, monkeypatch):
    query, gallery = players(queries=40, gallery=1100, width=32)
    found = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append(rerank(query, gallery, variant))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_tile_size_gives_the_same_result(variant, monkeypatch):
    rng = np.random.default_rng(7)
    query, gallery = rng.integers(0, 4, (25, 6)).astype(np.float32), rng.integers(0, 4, (300, 6)).astype(np.float32)
    expected = rerank(query, gallery, variant)
    for tile in (1, 19, 64, 1000):
        monkeypatch.setattr(neighbours, "TILE", tile)
        np.testing.assert_array_equal(rerank(query, gallery, variant), expected)


def test_neighbours_are_exact_with_ties_by_index():
    rng = np.random.default_rng(8)
    query, gallery = rng.integers(0, 3, (20, 4)).astype(np.float32), rng.integers(0, 3, (600, 4)).astype(np.float32)
    images = np.concatenate([query, gallery])
    distances = ((images[:, None] - images[None]) ** 2).sum(axis=2)
    joint, alone, largest, query_gallery = neighbours.search(query, gallery, 15)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :15]
    np.testing.assert_array_equal(neighbours.indices_of(joint), expected)
    values = (joint >> 32).astype(np.int32).view(np.float32)
    np.testing.assert_array_equal(values, np.take_along_axis(distances, expected, axis=1))
    expected = np.argsort(distances[:, 20:], axis=1, kind="stable")[:, :15]
    np.testing.assert_array_equal(neighbours.indices_of(alone) - 20, expected)
    np.testing.assert_array_equal(query_gallery, distances[:20, 20:])
    np.testing.assert_array_equal(largest, distances.max(axis=1))


@pytest.mark.parametrize("tiles", [1, 2, 3, 8, 11])
def test_rounds_meet_every_pair_once_and_no_tile_twice(tiles):
    rounds = list(neighbours._rounds(tiles))
    for pairs in rounds[1:]:
        met = [tile for pair in pairs for tile in pair]
        assert len(met) == len(set(met))
    found = [pair for pairs in rounds for pair in pairs]
    assert sorted(found) == [(i, j) for i in range(tiles) for j in range(i, tiles)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest_columns_of_given_distances_with_ties_by_column(dtype):
    matrix = np.random.default_rng(9).integers(-3, 4, (40, 60)).astype(dtype)
    matrix[3] = np.inf
    for k in (1, 7, 60):
        expected = np.argsort(matrix, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(neighbours.nearest_columns(matrix, k), expected)


def peak_bytes(function, *arguments):
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_k1_far_above_the_set_takes_no_more_memory_than_the_set(variant):
    query, gallery = players(queries=5, gallery=60)
    rerank(query, gallery, variant)  # compiled, imported
    with pytest.warns(UserWarning, match="k1=30000 exceeds the gallery; all its 60 images are used"):
        assert peak_bytes(rerank, query, gallery, variant, 30_000, 30_000) < 4e6


def test_no_matrix_of_all_images_is_held():
    query, gallery = players(queries=5, gallery=6000)
    rerank(query, gallery)
    peaks = [peak_bytes(rerank, query, gallery[:count]) for count in (3000, 6000)]
    assert peaks[1] < 3 * peaks[0] and peaks[1] < 6005**2 * 4 / 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_neighbour_and_no_half_size_sets(variant):
    query, gallery = players()
    found = rerank(query, gallery, variant, k1=1, k2=1)
    assert np.isfinite(found).all() and found.min() >= 0


def test_cpu_tensors_give_the_same_as_arrays():
    query, gallery = players()
    found = rerank(torch.from_numpy(query), torch.from_numpy(gallery))
    np.testing.assert_array_equal(found, rerank(query, gallery))


@pytest.mark.parametrize("variant", VARIANTS)
def test_range_of_jaccard_and_weight_zero(variant):
    query, gallery = players()
    jaccard = rerank(query, gallery, variant, jaccard_weight=1)
    assert jaccard.min() >= 0 and jaccard.max() <= 1 and jaccard.min() < 0.5 and jaccard.max() == 1
    order = np.argsort(rerank(query, gallery, variant, jaccard_weight=0), axis=1, kind="stable")
    ordered = np.take_along_axis(squared_euclidean(query, gallery), order, axis=1)
    assert (np.diff(ordered, axis=1) > -1e-6).all()


@pytest.mark.parametrize(("variant", "sizes"), list(product(VARIANTS, [(1, 1), (1, 40), (7, 1), (3, 4)])))
def test_tiny_sets(variant, sizes):
    query, gallery = players(*sizes)
    with pytest.warns(UserWarning, match=r"k1=50 exceeds the gallery; all its \d+ images are used"):
        found = rerank(query, gallery, variant, k1=50, k2=60)
    assert found.shape == sizes and np.isfinite(found).all()


@pytest.mark.parametrize("in_place", [False, True])
def test_k1_over_the_gallery_clips_where_the_published_code_stops(in_place):
    case, (_, k2, weight) = load(GOLDEN[-1])
    with pytest.warns(UserWarning, match="k1=21 exceeds"):
        found = rerank(case["query"], case["gallery"], "hard", 21, k2, weight, in_place)
    assert np.isfinite(found).all() and found.min() >= 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_images(variant):
    query, gallery = players()
    gallery[7], query[4] = gallery[3], gallery[3]
    found = rerank(query, gallery, variant, jaccard_weight=0)
    np.testing.assert_array_equal(found[:, 7], found[:, 3])
    assert found[4, 7] == 0
    copies = rerank(query, np.repeat(gallery[:1], 30, axis=0), variant)
    assert np.isfinite(copies).all() and copies.min() >= 0 and copies.max() <= 1


def test_images_with_nothing_in_common_are_at_jaccard_distance_one():
    query = np.array([[1, 0], [0, 1]], np.float32)
    gallery = np.repeat(query, 5, axis=0) + np.linspace(0, 0.01, 10, dtype=np.float32)[:, None]
    found = rerank(query, gallery, "kreciprocal", k1=4, k2=2, jaccard_weight=1)
    assert (found[0, 5:] == 1).all() and (found[1, :5] == 1).all() and (found[0, :3] < 0.7).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_sweep_equals_single_calls(variant):
    query, gallery = players()
    found = dict(rerank_sweep(query, gallery, variant, [5, 20], [1, 6], [0, 0.7]))
    assert list(found) == list(product([5, 20], [1, 6], [0, 0.7]))
    for setting, distances in found.items():
        np.testing.assert_allclose(distances, rerank(query, gallery, variant, *setting), atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_query_query_distances(variant):
    query, gallery = players(queries=20, noise=0.3)
    blocks = squared_euclidean(query, gallery), squared_euclidean(gallery, gallery)
    np.fill_diagonal(blocks[1], 0)
    found = rerank(query, gallery, variant, query_query=False)
    np.testing.assert_allclose(found, rerank_distances(blocks[0], None, blocks[1], variant), atol=2e-6)
    assert np.abs(found - rerank(query, gallery, variant)).max() > 1e-4
    copies = np.repeat(query[:1], 20, axis=0)
    assert np.isfinite(rerank(copies, gallery, variant, k1=5, k2=3, query_query=False)).all()


def test_bad_settings_are_named():
    query, gallery = players()
    for settings, message in [
        ({"variant": "soft"}, "variant 'soft' is unknown; choose one of hard"),
        ({"k1": 0}, "k1 must be a whole number of at least 1, not 0"),
        ({"k2": 2.5}, "k2 must be a whole number"),
        ({"k1": True}, "k1 must be a whole number of at least 1, not True"),
        ({"jaccard_weight": None}, r"jaccard_weight must lie in \[0, 1\], not None"),
        ({"jaccard_weight": "0.5"}, r"jaccard_weight must lie in \[0, 1\], not '0.5'"),
        ({"jaccard_weight": float("nan")}, r"jaccard_weight must lie in \[0, 1\], not nan"),
        ({"jaccard_weight": 1.5}, r"jaccard_weight must lie in \[0, 1\], not 1.5"),
        ({"variant": "gaussian", "in_place": True}, "in_place=True exists for the hard variant only"),
    ]:
        with pytest.raises(ValueError, match=message):
            rerank(query, gallery, **settings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_in_numpys_short_integers_do_not_overflow(variant):
    rng = np.random.default_rng(0)
    query, gallery = (rng.normal(size=(n, 4)).astype(np.float32) for n in (5, 300))
    short = rerank(query, gallery, variant, np.uint8(255), np.int8(2), np.float32(0.5))
    np.testing.assert_array_equal(short, rerank(query, gallery, variant, 255, 2, 0.5))
    swept = dict(rerank_sweep(query, gallery, variant, np.array([127], np.int8), np.array([2], np.int8), [0.5]))
    np.testing.assert_array_equal(swept[127, 2, 0.5], rerank(query, gallery, variant, 127, 2, 0.5))


def test_an_empty_sweep_is_named():
    for name in ("k1", "k2", "jaccard_weight"):
        with pytest.raises(ValueError, match=f"no {name} is given; name at least one"):
            next(rerank_sweep(*players(), **{f"{name}s": []}))


@pytest.mark.filterwarnings("ignore:k1=20 exceeds")
def test_features_too_large_for_float32_are_refused():
    query, gallery = players()
    with pytest.raises(ValueError, match=r"query features reach .*too large for float32 distances; L2-normalise"):
        rerank(query * np.float32(1e12), gallery, "gaussian")
    matrix = np.full((3, 3), 1e30, np.float32)
    with pytest.raises(ValueError, match="too large to be squared in float32"):
        rerank_distances(matrix, matrix, matrix, "gaussian")


def test_bfloat16_features_are_taken():
    query, gallery = (torch.from_numpy(side).bfloat16() for side in players())
    np.testing.assert_array_equal(rerank(query, gallery), rerank(query.float(), gallery.float()))


def test_bad_matrices_are_named():
    matrix = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"query-query distances must be of shape \(3, 3\), not \(4, 4\)"):
        rerank_distances(matrix, np.ones((4, 4)), np.ones((4, 4)))
    with pytest.raises(ValueError, match="gallery-gallery distances row 1 holds NaN"):
        rerank_distances(matrix, np.ones((3, 3)), np.where(np.eye(4, k=-1)[:4] * [1, 0, 0, 0] > 0, np.nan, 1.0))
