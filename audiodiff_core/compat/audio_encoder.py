"""`AudioEncoder` of the `audiodiffusion` package: embeddings of audio files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch

from audiodiff_core.compat.mel import Mel
from audiodiff_core.embeddings import audio_encoder
from audiodiff_core.embeddings.encoder_folder import local_folder
from audiodiff_core.mel import IMAGE_MAX


class AudioEncoder(audio_encoder.AudioEncoder):
    """Audio encoder with the `encode` method of `audiodiffusion`.

    The network runs on the device that it was moved to.

    Args:
        name: The name of the encoder: its folder or Hugging Face id.
    """

    def __init__(self, name: str = "audio-encoder") -> None:
        super().__init__(name)
        self.images = Mel.of(audio_encoder.AudioEncoder.mel)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path) -> Self:
        """Load an encoder. Only tensors are unpickled.

        Args:
            pretrained_model_name_or_path: A local folder, or a Hugging Face id such as teticio/audio-encoder.
        """
        source = str(pretrained_model_name_or_path)
        return cls.of(local_folder(source), source)

    @torch.no_grad()
    def encode(  # type: ignore[override]  # the original's signature
        self, audio_files: Sequence[str | Path], pool: Literal["average", "max"] | None = "average"
    ) -> torch.Tensor:
        """Embed audio files.

        Args:
            audio_files: Local files. Each file is divided into slices of 5.015 s.
            pool: The mean ("average") or the maximum ("max") over the slices of a file, or None for no pooling.

        Returns:
            Embeddings (files, 100), or (files, slices, 100) if `pool` is None.

        Raises:
            ValueError: `pool` is unknown, or `pool` is None and the files have different numbers of slices. For such
                files, use `audiodiff_core.embeddings.audio_encoder.AudioEncoder.encode_slices`, which returns a list.
        """
        if pool not in ("average", "max", None):
            raise ValueError(f"pool {pool!r}: must be average, max or None")
        embeddings = [self(self._slices(file)) for file in audio_files]
        match pool:
            case "average":
                return torch.stack([of_slices.mean(dim=0) for of_slices in embeddings])
            case "max":
                return torch.stack([of_slices.amax(dim=0) for of_slices in embeddings])
        counts = {len(of_slices) for of_slices in embeddings}
        if len(counts) > 1:
            raise ValueError(
                f"pool None: the files have from {min(counts)} to {max(counts)} slices and do not fit into one tensor: "
                "use average or max"
            )
        return torch.stack(embeddings)

    def _slices(self, audio_file: str | Path) -> torch.Tensor:
        """Return the slices of a file as input for the network: (slices, 1, 96, 216) in [0, 1]."""
        self.images.load_audio(audio_file)
        count = self.images.get_number_of_slices()
        levels = np.stack([np.asarray(self.images.audio_slice_to_image(index)) for index in range(count)])
        return torch.Tensor(levels[:, np.newaxis] / IMAGE_MAX).to(self.embedding.weight.device)
