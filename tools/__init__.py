"""Command lines beside the study."""
