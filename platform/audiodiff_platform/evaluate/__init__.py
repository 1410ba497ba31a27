"""evaluate: distances of generated from real audio."""
