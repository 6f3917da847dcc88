"""Distances, re-ranking, fusion, metrics, statistics and the submission file: the public names."""

# ruff: noqa: F401

from reid_utils.ranking.distances import squared_euclidean
from reid_utils.ranking.feature_files import read_distance_csv, write_distance_csv
from reid_utils.ranking.fusion import (
    check_same_ids,
    dissimilarity_fusion,
    dissimilarity_weights,
    min_max_fusion,
    rank_average,
    reciprocal_rank_fusion,
    similarity_fusion,
    two_stage_fusion,
    z_score_fusion,
)
from reid_utils.ranking.metrics import (
    average_precisions,
    cmc,
    mean_average_precision,
    mean_inverse_negative_penalty,
)
from reid_utils.ranking.reranking import rerank, rerank_distances, rerank_sweep
