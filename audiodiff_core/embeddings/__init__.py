"""Embeddings of audio and text: the original's AudioEncoder and CLAP."""

from audiodiff_core.embeddings.encoder import Encoder, load_encoder
from audiodiff_core.embeddings.inputs import Embeddings

__all__ = [
    "Embeddings",
    "Encoder",
    "load_encoder",
]
