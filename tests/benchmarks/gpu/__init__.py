"""Measurements of sampling, decoding, synthesis and training on one GPU, with random weights.

plan.py      sizes of the measurements
report.py    rows of results: one file, and tables
timing.py    medians of wall, host and device time
sampling.py  steps of the batch engine, and diffusers' pipeline as the alternative
equality.py  bytes of an item alone, in each slot, and in company
stages.py    autoencoder, vocoder and training step
"""
