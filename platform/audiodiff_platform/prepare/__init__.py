"""prepare: audio files to a mel data set."""
