"""Distances, re-ranking, fusion, metrics, statistics and the submission file."""

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
    first_match_ranks,
    mean_average_precision,
    mean_inverse_negative_penalty,
)
from reid_utils.ranking.reranking import rerank, rerank_distances, rerank_sweep

__all__ = [
    "average_precisions",
    "check_same_ids",
    "cmc",
    "dissimilarity_fusion",
    "dissimilarity_weights",
    "first_match_ranks",
    "mean_average_precision",
    "mean_inverse_negative_penalty",
    "min_max_fusion",
    "rank_average",
    "read_distance_csv",
    "reciprocal_rank_fusion",
    "rerank",
    "rerank_distances",
    "rerank_sweep",
    "similarity_fusion",
    "squared_euclidean",
    "two_stage_fusion",
    "write_distance_csv",
    "z_score_fusion",
]
