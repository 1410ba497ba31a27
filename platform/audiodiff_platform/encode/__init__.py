"""The verb `encode`: embeddings of audio files, or latents of a mel dataset."""
