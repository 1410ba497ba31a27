"""generate: a model and seeds to loops."""
