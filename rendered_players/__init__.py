"""The renderer of basketball players: crops and whole data sets, the same bytes for the same settings."""

# Folders of the Synergy layout, in which a rendered set lies.
FOLDERS = ("reid_training", "reid_test/query", "reid_test/gallery", "reid_challenge/query", "reid_challenge/gallery")
