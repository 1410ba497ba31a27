"""Files of models: where they lie, how they are fetched, and how weights are read without unpickling."""
