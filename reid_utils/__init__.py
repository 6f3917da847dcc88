"""Utilities of the player re-identification study: data, learning, ranking, study, paper, views; files.py for all."""
