"""Data formats that several jobs share: mel datasets, latents, encodings, folders of loops and of training runs."""
