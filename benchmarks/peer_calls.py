"""One contender of `benchmarks.peers`, in a process and an environment of its own.

`python -m benchmarks.peer_calls WORK PACKAGE INPUTS.npz RESULT.npy` prints a line of JSON: seconds, megabytes, version.
"""

import importlib.util
import json
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import numpy as np

from benchmarks.measure import peak

K1, K2, WEIGHT, NEAREST, RANKS = 20, 6, 0.7, 21, 20
PATIENCE = 20.0  # seconds beyond which a call is not repeated
REPEATS = 3


def module(package, file):
    """A module of an installed package by its file: its package's own imports ask for far more than it uses."""
    path = Path(distribution(package).locate_file(file))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def squared_distances(left, right):
    """Squared Euclidean distances by torch, as torchreid and fastreid compute them before they re-rank."""
    import torch

    left, right = torch.from_numpy(left), torch.from_numpy(right)
    norms = (left * left).sum(dim=1)[:, None] + (right * right).sum(dim=1)
    return norms.addmm_(left, right.T, alpha=-2).clamp_(min=0).numpy()


def ours_reranking(query, gallery, **_):
    from reid_utils.ranking import rerank

    return rerank(query, gallery, "gaussian", K1, K2, WEIGHT)


def _theirs_reranking(package, file):
    def call(query, gallery, **_):
        pairs = [(query, gallery), (query, query), (gallery, gallery)]
        function = module(package, file).re_ranking
        return function(*(squared_distances(*pair) for pair in pairs), k1=K1, k2=K2, lambda_value=1 - WEIGHT)

    return call


def ours_nearest(query, gallery, **_):
    from reid_utils.ranking.neighbours import search

    joint, *_ = search(query, gallery, NEAREST)
    return (joint >> 32).astype(np.int32).view(np.float32)


def faiss_nearest(query, gallery, **_):
    import faiss

    images = np.concatenate([query, gallery])
    index = faiss.IndexFlatL2(images.shape[1])
    index.add(images)
    return index.search(images, NEAREST)[0]


def ours_metrics(distances, query_ids, gallery_ids, **_):
    from reid_utils.ranking import cmc, mean_average_precision

    curve = cmc(distances, query_ids, gallery_ids, protocol="market1501", topk=RANKS)
    return np.append(mean_average_precision(distances, query_ids, gallery_ids), curve)


def _theirs_metrics(package, file):
    def call(distances, query_ids, gallery_ids, **_):
        cameras = np.zeros(len(query_ids), int), np.ones(len(gallery_ids), int)
        found = module(package, file).evaluate_rank(distances, query_ids, gallery_ids, *cameras, max_rank=RANKS)
        return np.append(np.mean(found[1]), found[0])  # torchreid gives the mean, fastreid a value a query

    return call


def ours_precision(distances, query_ids, gallery_ids, **_):
    from reid_utils.ranking import mean_average_precision

    return np.array([mean_average_precision(distances, query_ids, gallery_ids)])


def oml_precision(distances, query_ids, gallery_ids, **_):
    import torch
    from oml.functional.metrics import calc_retrieval_metrics

    order = torch.from_numpy(distances).argsort(dim=1)
    truth = [torch.from_numpy(np.flatnonzero(gallery_ids == player)) for player in query_ids]
    every = (distances.shape[1],)
    found = calc_retrieval_metrics(list(order), truth, cmc_top_k=(), precision_top_k=(), map_top_k=every, verbose=False)
    return np.array([float(found["map"][every[0]])])


def ours_precision_of_features(query, gallery, query_ids, gallery_ids, **_):
    from reid_utils.ranking import squared_euclidean

    return ours_precision(squared_euclidean(query, gallery), query_ids, gallery_ids)


def pml_precision_of_features(query, gallery, query_ids, gallery_ids, **_):
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    given = map(torch.from_numpy, (query, query_ids, gallery, gallery_ids))
    calculator = AccuracyCalculator(include=("mean_average_precision",), k=len(gallery), device=torch.device("cpu"))
    return np.array([calculator.get_accuracy(*given)["mean_average_precision"]])


TORCHREID, FASTREID = "torchreid", "fastreid"
CALLS = {  # work: {package: call}
    "re-ranking": {
        "ours": ours_reranking,
        TORCHREID: _theirs_reranking(TORCHREID, "torchreid/reid/utils/rerank.py"),
        FASTREID: _theirs_reranking(FASTREID, "fastreid/evaluation/rerank.py"),
    },
    "21 nearest of every image": {"ours": ours_nearest, "faiss-cpu": faiss_nearest},
    "mAP and CMC of distances": {
        "ours": ours_metrics,
        TORCHREID: _theirs_metrics(TORCHREID, "torchreid/reid/metrics/rank.py"),
        FASTREID: _theirs_metrics(FASTREID, "fastreid/evaluation/rank.py"),
    },
    "mAP of distances": {"ours": ours_precision, "open-metric-learning": oml_precision},
    "mAP of features": {"ours": ours_precision_of_features, "pytorch-metric-learning": pml_precision_of_features},
}


def main(work, package, inputs, result):
    """Call once on a corner of the inputs, then on all of them until patience ends; print and write what came."""
    with np.load(inputs) as file:
        given = {name: file[name] for name in file.files}
    call, seconds = CALLS[work][package], []
    call(**_corner(given))  # imports, compilation and thread pools are not measured
    while len(seconds) < REPEATS and sum(seconds) < PATIENCE:
        found = []
        taken, megabytes = peak(lambda found=found: found.append(call(**given)))
        seconds.append(taken)
    np.save(result, found[0])
    known = "" if package == "ours" else version(package)
    print(json.dumps({"seconds": sorted(seconds)[len(seconds) // 2], "megabytes": megabytes, "version": known}))


def _corner(given, queries=40, gallery=200):
    """The first queries and gallery images of the inputs, every query with a match."""
    sizes = {"query": (queries,), "gallery": (gallery,), "query_ids": (queries,), "gallery_ids": (gallery,)}
    sizes["distances"] = (queries, gallery)
    cut = {name: values[tuple(map(slice, sizes[name]))] for name, values in given.items()}
    cut["query_ids"] = cut["gallery_ids"][: len(cut["query_ids"])]
    return {name: np.ascontiguousarray(values) for name, values in cut.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
