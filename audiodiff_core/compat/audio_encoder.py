"""The original's `AudioEncoder`: files in, a tensor of embeddings out."""

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
    """The network of `audiodiff_core.embeddings.audio_encoder.AudioEncoder`, on whatever device it was moved to, with the original's way of asking."""

    def __init__(self, name: str = "audio-encoder") -> None:
        super().__init__(name)
        self.images = Mel.of(audio_encoder.AudioEncoder.mel)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path) -> Self:
        """The weights of a local folder or of a Hugging Face id such as teticio/audio-encoder; only tensors are unpickled."""
        source = str(pretrained_model_name_or_path)
        return cls.of(local_folder(source), source)

    @torch.no_grad()
    def encode(  # type: ignore[override]  # the original's signature
        self, audio_files: Sequence[str | Path], pool: Literal["average", "max"] | None = "average"
    ) -> torch.Tensor:
        """Embeddings (files, 100), averaged or maximised over each file's slices of 5.015 s, or with `pool` None (files, slices, 100).

        Raises ValueError for an unknown `pool`, and with None for files of different lengths: `audiodiff_core.embeddings.encoder` gives those as a list.
        """
        if pool not in ("average", "max", None):
            raise ValueError(f"pool {pool!r}: average, max and None are known")
        each = [self(self._slices(file)) for file in audio_files]
        match pool:
            case "average":
                return torch.stack([slices.mean(dim=0) for slices in each])
            case "max":
                return torch.stack([slices.amax(dim=0) for slices in each])
        lengths = {len(slices) for slices in each}
        if len(lengths) > 1:
            raise ValueError(
                f"pool None: the files have from {min(lengths)} to {max(lengths)} slices, which make no tensor: use average or max"
            )
        return torch.stack(each)

    def _slices(self, audio_file: str | Path) -> torch.Tensor:
        """A file's slices as the network takes them: (slices, 1, 96, 216) in [0, 1]."""
        self.images.load_audio(audio_file)
        count = self.images.get_number_of_slices()
        levels = np.stack([np.asarray(self.images.audio_slice_to_image(index)) for index in range(count)])[
            :, np.newaxis
        ]
        return torch.Tensor(levels / IMAGE_MAX).to(self.embedding.weight.device)
