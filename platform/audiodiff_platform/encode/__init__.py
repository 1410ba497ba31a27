"""The verb encode: compute embeddings of audio files, or latents of a mel dataset."""
