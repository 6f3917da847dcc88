"""`python -m benchmarks`: every part of the ranking core against the floor measured in the same run."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import contenders
from benchmarks.measure import Measured, in_turns, machine
from reid_utils import ranking

SIZES = {"50x910": 1024, "468x8703": 1024, "618x9505": 1024, "2000x20000": 1024, "5000x100000": 1024}
LARGEST_FOR_MATRICES = 25_000  # beyond, only re-ranking is measured, once
LARGEST_FOR_DENSE = 10_000  # the dense alternatives hold several N × N matrices
HEADER = (
    "work",
    "size",
    "seconds: median (min–max)",
    "first call",
    "of the floor",
    "of the limit",
    "peak MB above inputs",
)


def synthetic_features(queries: int, gallery: int, width: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Unit features (float32) of about 20 images a player, and their players."""
    rng = np.random.default_rng(seed)
    players = max(queries, gallery // 20)
    centres = rng.standard_normal((players, width), np.float32)
    labels = np.concatenate([np.arange(queries) % players, rng.integers(0, players, gallery)])
    labels[queries : queries + min(queries, gallery)] = labels[: min(queries, gallery)]
    images = rng.standard_normal((len(labels), width), np.float32)
    images += np.float32(0.4) * centres[labels]  # hard enough that re-ranking has something to do
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    return images[:queries], images[queries:], labels[:queries], labels[queries:]


def reranking_contenders(query: np.ndarray, gallery: np.ndarray) -> dict[str, Callable]:
    """Re-ranking of the variants, and the dense textbook version where it fits."""
    ours = {
        f"re-ranking, {variant}": lambda variant=variant: ranking.rerank(query, gallery, variant)
        for variant in ("gaussian", "hard", "kreciprocal")
    }
    if len(query) + len(gallery) > LARGEST_FOR_MATRICES:
        return {name: ours[name] for name in ("re-ranking, gaussian",)}
    ours["re-ranking, hard in place"] = lambda: ranking.rerank(query, gallery, "hard", in_place=True)
    if len(query) + len(gallery) <= LARGEST_FOR_DENSE:
        ours["— dense k-reciprocal in NumPy"] = lambda: contenders.dense_reranking(query, gallery)
    return ours


def all_metrics(*given, rng) -> None:
    """mAP and the three CMC protocols, cuhk03 sampled."""
    ranking.mean_average_precision(*given)
    for protocol in ("allshots", "market1501"):
        ranking.cmc(*given, protocol=protocol)
    ranking.cmc(*given, protocol="cuhk03", rng=rng)


def matrix_contenders(query, gallery, query_ids, gallery_ids, folder: Path) -> dict[str, Callable]:
    """Metrics, fusion and the CSV, with their alternatives."""
    distances = ranking.squared_euclidean(query, gallery)
    rng = np.random.default_rng(1)
    models = [distances, *(distances + 0.1 * rng.random(distances.shape, np.float32) for _ in range(2))]
    given = (distances, query_ids, gallery_ids)
    return {
        "mAP": lambda: ranking.mean_average_precision(*given),
        "mAP + 3 CMC": lambda: all_metrics(*given, rng=np.random.default_rng(0)),
        "mAP + 3 CMC, the toolkit's random stream": lambda: all_metrics(*given, rng=np.random.RandomState(0)),
        "— mAP, scikit-learn loop": lambda: contenders.precision_loop(*given),
        "— mAP + 1 CMC, one argsort": lambda: contenders.sorted_metrics(*given),
        "similarity fusion of 3": lambda: ranking.similarity_fusion(models),
        "dissimilarity fusion of 3": lambda: ranking.dissimilarity_fusion(models),
        "two-stage fusion of 3": lambda: ranking.two_stage_fusion(models),
        "— dissimilarity fusion, argsort loop": lambda: contenders.fusion_loop(models),
        "CSV write": lambda: ranking.write_distance_csv(folder / "ours.csv", *given),
        "— CSV write, numpy.savetxt": lambda: contenders.savetxt(folder / "theirs.csv", *given),
    }


def row(name: str, size: str, found: Measured, floor: float, limit: float) -> str:
    """One line of the table."""
    spread = f" ({min(found.seconds):.3f}–{max(found.seconds):.3f})" if len(found.seconds) > 1 else " (once)"
    peak = "–" if found.peak is None else f"{found.peak:.0f}"
    ratios = [f"{found.median / least:.3f}" for least in (floor, limit)]
    cells = (name, size, f"{found.median:.3f}{spread}", f"{found.first:.2f}", *ratios, peak)
    return f"| {' | '.join(cells)} |"


def measure_size(size: str, rounds: int, folder: Path) -> None:
    """Measure and print everything at one size."""
    queries, images = map(int, size.split("x"))
    query, gallery, query_ids, gallery_ids = synthetic_features(queries, images, SIZES[size])
    least = {
        "floor: product + top-k in torch": lambda: contenders.floor(query, gallery),
        "limit: half the products, in tiles": lambda: contenders.limit(query, gallery),
    }
    found = in_turns(least | reranking_contenders(query, gallery), rounds)
    if queries + images <= LARGEST_FOR_MATRICES:
        found |= in_turns(matrix_contenders(query, gallery, query_ids, gallery_ids, folder), rounds)
    floor, limit = (found[name].median for name in least)
    for name, measured in found.items():
        print(row(name, size.replace("x", "×"), measured, floor, limit), flush=True)


def main() -> None:
    """Parse the command line and print the table as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="queries x gallery (all)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender after its first (5)")
    arguments = parser.parse_args()
    print(f"{machine()}; k1 20, k2 6; {arguments.rounds} rounds in turns\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            measure_size(size, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
