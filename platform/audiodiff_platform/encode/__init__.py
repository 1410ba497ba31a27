"""encode: audio files to embeddings, or a mel data set to latents."""
