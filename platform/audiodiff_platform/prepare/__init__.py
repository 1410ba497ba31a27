"""The verb prepare: write audio files as a mel dataset."""
