"""The verb `prepare`: a mel dataset from audio files."""
