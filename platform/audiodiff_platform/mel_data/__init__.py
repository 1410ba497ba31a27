"""Formats that the verbs share: data sets, latents, encodings, sample order, folders of loops and of runs."""
