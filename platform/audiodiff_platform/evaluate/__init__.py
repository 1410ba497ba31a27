"""The verb `evaluate`: distances of generated audio from real audio."""
