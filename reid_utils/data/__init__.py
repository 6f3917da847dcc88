"""Synergy-layout data sets: rendering, download, manifest, decoding, augmentation, batches."""
