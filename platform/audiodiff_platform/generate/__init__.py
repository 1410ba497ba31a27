"""The verb `generate`: loops from a model and seeds."""
