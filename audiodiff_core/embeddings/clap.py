"""CLAP encoders of audio and text, loaded with transformers.

Paper: Wu et al., "Large-scale contrastive language-audio pretraining", 2023.
"""

import importlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiodiff_core.audio import Samples
from audiodiff_core.embeddings.encoder_folder import local_folder
from audiodiff_core.embeddings.inputs import Embeddings, batches, check_audios, encoder_digest


class ClapEncoder:
    """CLAP encoder of audio and text.

    Embeddings are unit vectors. The embeddings of a sound and of a text that describes it are close.
    """

    def __init__(self, source: str | Path, folder: Path | None = None, device: torch.device | str = "cpu") -> None:
        """Load a CLAP model.

        Args:
            source: A folder that transformers wrote, or a Hugging Face id.
            folder: Local folder of the model's files. None locates or downloads them.
            device: Device for the model.

        Raises:
            ValueError: If transformers is not installed, or the model cannot be loaded.
        """
        try:
            transformers: Any = importlib.import_module("transformers")
        except ModuleNotFoundError as error:
            raise ValueError(
                f"encoder {source}: CLAP needs transformers ({error}): run pip install 'audiodiff[clap]'"
            ) from error
        from audiodiff_core.embeddings.clap_files import load_clap  # slow to import

        self.name = f"clap:{source}"
        folder = folder or local_folder(str(source))
        try:
            model, self.features, self.tokenizer = load_clap(transformers, folder)
        except Exception as error:  # transformers raises many kinds of errors for damaged files
            raise ValueError(f"encoder {source}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
        self.model: Any = model.to(device)

    @property
    def dim(self) -> int:
        """Number of values in an embedding."""
        return int(self.model.config.projection_dim)

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz that `encode` requires."""
        return int(self.features.sampling_rate)

    @cached_property
    def digest(self) -> str:
        """Digest of weights and settings, as 16 hex digits."""
        return encoder_digest(self.model, json.dumps(self.features.to_dict(), sort_keys=True, default=str))

    @torch.inference_mode()
    def encode(self, audios: Sequence[Samples], sample_rate: int) -> Embeddings:
        """Embed audio as the normalized mean over the embeddings of its windows. See `Encoder.encode`.

        A window lasts 10 s in the published models. A last window of less than half this duration is dropped, unless it
        is the only window. In longer audio, CLAP's feature extractor chooses windows at random. This method uses all
        windows, so that its result is deterministic.

        Args:
            audios: Mono samples of shape (n,). Lengths may differ.
            sample_rate: Sample rate of `audios`, in Hz.

        Returns:
            Unit vectors of shape (len(audios), dim).

        Raises:
            ValueError: If an argument is invalid.
        """
        check_audios(audios, sample_rate, self.sample_rate, self.name)
        size = int(self.features.nb_max_samples)
        counts = [max(1, (len(audio) + size // 2) // size) for audio in audios]
        windows = (
            audio[index * size : (index + 1) * size]
            for audio, count in zip(audios, counts, strict=True)
            for index in range(count)
        )
        parts = []
        for batch in batches(
            self.features(window, sampling_rate=sample_rate, return_tensors="np")["input_features"][0]
            for window in windows
        ):
            inputs = torch.from_numpy(np.stack(batch).astype(np.float32)).to(self.model.device)
            is_longer = torch.zeros((len(batch), 1), dtype=torch.bool, device=self.model.device)
            parts.append(
                self.model.get_audio_features(input_features=inputs, is_longer=is_longer)
                .pooler_output.float()
                .cpu()
                .numpy()
            )
        embeddings = np.split(np.concatenate(parts)[: sum(counts)], np.cumsum(counts)[:-1])
        means: Embeddings = np.stack([windows.mean(axis=0) for windows in embeddings])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        return means

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts such as "a slow drum loop".

        Args:
            texts: At least one text. Texts that are too long for the model are truncated.

        Returns:
            Unit vectors of shape (len(texts), dim).

        Raises:
            ValueError: If `texts` is empty.
        """
        if not texts:
            raise ValueError("texts: must contain at least one text")
        max_tokens = int(self.model.config.text_config.max_position_embeddings) - 2  # positions of RoBERTa begin at 2
        rows = []
        for text in texts:
            tokens = self.tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt").to(
                self.model.device
            )
            output = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            rows.append(output.pooler_output[0].float().cpu().numpy())
        return np.stack(rows)
