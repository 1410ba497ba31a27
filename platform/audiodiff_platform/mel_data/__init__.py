"""Data formats that jobs share: mel datasets, latents, encodings, loops and training runs."""
