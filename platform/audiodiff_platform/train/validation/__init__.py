"""Validation of checkpoints, concurrently with training."""
