"""Training objectives, noise schedules and sampling methods."""
