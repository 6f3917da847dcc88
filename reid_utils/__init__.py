"""Utilities of the player re-identification study: data, learning, ranking, study, views."""
