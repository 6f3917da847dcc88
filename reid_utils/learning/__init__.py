"""Encoders, losses, the training loop and feature extraction."""
