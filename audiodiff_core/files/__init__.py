"""Model files: their names and locations, and weights that are read without running pickled code."""
