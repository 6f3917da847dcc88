"""Distances, re-ranking, fusion, metrics, statistics and the submission file."""
