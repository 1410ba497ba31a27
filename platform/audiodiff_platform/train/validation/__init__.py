"""Validation of checkpoints beside training."""
