"""Embeddings of audio and text, by CLAP or by the original project's AudioEncoder."""

from audiodiff_core.embeddings.encoder import Encoder, load_encoder
from audiodiff_core.embeddings.inputs import Embeddings

__all__ = [
    "Embeddings",
    "Encoder",
    "load_encoder",
]
