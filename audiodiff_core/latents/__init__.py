"""Latents of an AutoencoderKL: encoding, decoding and posteriors."""

from audiodiff_core.latents.codec import decode_latents, encode_latents, latent_factor, latent_shape

__all__ = [
    "decode_latents",
    "encode_latents",
    "latent_factor",
    "latent_shape",
]
