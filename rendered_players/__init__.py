"""The renderer of basketball players: crops and whole data sets, the same bytes for the same settings."""
