"""The evaluate job: distances of generated audio from real audio."""
