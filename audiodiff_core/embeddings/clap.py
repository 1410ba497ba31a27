"""CLAP encoders (Wu et al., "Large-scale contrastive language-audio pretraining", 2023) through transformers."""

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
    """A CLAP model, for audio and for text: unit vectors, alike where sound and words belong together."""

    def __init__(self, source: str | Path, folder: Path | None = None, device: torch.device | str = "cpu") -> None:
        """`source`: a folder of transformers' or a Hugging Face id; `folder`: where its files lie, if that is known."""
        try:
            transformers: Any = importlib.import_module("transformers")
        except ModuleNotFoundError as error:
            raise ValueError(
                f"encoder {source}: CLAP needs transformers ({error}): pip install 'audiodiff[clap]'"
            ) from error
        from audiodiff_core.embeddings.clap_files import load_clap  # its import takes a while

        self.name = f"clap:{source}"
        folder = folder or local_folder(str(source))
        try:
            model, self.features, self.tokenizer = load_clap(transformers, folder)
        except Exception as error:  # what a damaged file makes transformers raise is its own
            raise ValueError(f"encoder {source}: cannot be loaded ({' '.join(str(error).split())[:300]})") from error
        self.model: Any = model.to(device)

    @property
    def dim(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def sample_rate(self) -> int:
        return int(self.features.sampling_rate)

    @cached_property
    def digest(self) -> str:
        return encoder_digest(self.model, json.dumps(self.features.to_dict(), sort_keys=True, default=str))

    @torch.inference_mode()
    def encode(self, audios: Sequence[Samples], sample_rate: int) -> Embeddings:
        """As `Encoder.encode`: the mean direction of an audio's windows (10 s for the published models), the last counted from half a window on.

        (CLAP's own feature extractor takes windows at random from longer audio; these are all of them, so the result is always the same.)
        """
        check_audios(audios, sample_rate, self.sample_rate, self.name)
        size = int(self.features.nb_max_samples)
        counts = [max(1, (len(audio) + size // 2) // size) for audio in audios]
        cut = (
            audio[index * size : (index + 1) * size]
            for audio, count in zip(audios, counts, strict=True)
            for index in range(count)
        )
        parts = []
        for batch in batches(
            self.features(window, sampling_rate=sample_rate, return_tensors="np")["input_features"][0] for window in cut
        ):
            inputs = torch.from_numpy(np.stack(batch).astype(np.float32)).to(self.model.device)
            whole = torch.zeros((len(batch), 1), dtype=torch.bool, device=self.model.device)
            parts.append(
                self.model.get_audio_features(input_features=inputs, is_longer=whole)
                .pooler_output.float()
                .cpu()
                .numpy()
            )
        windows = np.split(np.concatenate(parts)[: sum(counts)], np.cumsum(counts)[:-1])
        means: Embeddings = np.stack([each.mean(axis=0) for each in windows])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        return means

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Texts, such as 'a slow drum loop' -> (len(texts), dim); longer ones than the model takes are cut."""
        if not texts:
            raise ValueError("texts: none are given")
        longest = int(self.model.config.text_config.max_position_embeddings) - 2  # RoBERTa's positions begin at 2
        rows = []
        for text in texts:
            tokens = self.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt").to(
                self.model.device
            )
            output = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            rows.append(output.pooler_output[0].float().cpu().numpy())
        return np.stack(rows)
