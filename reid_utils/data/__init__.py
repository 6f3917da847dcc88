"""Data sets in any of the known layouts: download, manifest, checks, decoding, augmentation, batches."""
