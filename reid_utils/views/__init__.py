"""Figures drawn by the notebooks."""
