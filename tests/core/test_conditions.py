"""Requests with `like` and `prompt` in Python: the embeddings of the encoder, each computed once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from diffusers import DDIMScheduler

from audiodiff_core.audio import Samples, decode_audio
from audiodiff_core.checkpoint import EncoderRecord, Model, ModelRecord
from audiodiff_core.embeddings import Embeddings
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import REQUEST, ExecutionProfile, GenerateRequest

DIM, RATE = 8, 16_000
RECORD = ModelRecord(recipe={}, data_digest="", metrics={}, encoder=EncoderRecord(name="bands", digest="b" * 16))


class Bands:
    """Encoder of audio to the levels of bands, which notes the numbers of audios of its calls."""

    name, digest, dim, sample_rate = "bands", "b" * 16, DIM, RATE

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode(self, audios: Sequence[Samples], sample_rate: int) -> Embeddings:
        assert sample_rate == RATE
        self.calls.append(len(audios))
        return np.stack([self.of(audio) for audio in audios])

    @staticmethod
    def of(audio: Samples) -> Embeddings:
        bands = np.array_split(np.fft.rfft(audio), DIM)
        levels: Embeddings = np.array([abs(band).mean() for band in bands], np.float32)
        levels /= levels.max()
        return levels


@pytest.fixture
def model(make_conditional: Callable[[int], Any], tiny_mel: MelConfig) -> Model:
    return Model(make_conditional(0), DDIMScheduler(), tiny_mel, "", record=RECORD)


PROFILE = ExecutionProfile(batch_size=4)


def _images(pipeline: LoopPipeline, requests: Any) -> list[bytes]:
    return [loop.image.tobytes() for loop in sorted(pipeline.generate(requests), key=lambda loop: loop.number)]


def test_audio_is_embedded_once_and_in_batches(model: Model, loop_files: list[Path]) -> None:
    bands = Bands()
    pipeline = LoopPipeline.of(model, PROFILE, bands)
    files = [str(file) for file in loop_files[:3]]
    requests = [GenerateRequest(seed=seed, steps=2, like=files[seed % 3]) for seed in range(6)]
    made = _images(pipeline, requests)
    assert bands.calls == [3]
    vectors = [tuple(map(float, Bands.of(decode_audio(file, RATE)))) for file in files]
    given = [GenerateRequest(seed=seed, steps=2, encoding=vectors[seed % 3]) for seed in range(6)]
    assert made == _images(LoopPipeline.of(model, PROFILE), given)
    assert len(set(made)) == 6
    assert _images(pipeline, iter(requests)) == made
    assert bands.calls == [3, 1, 1, 1]


def test_conditions_that_cannot_be_embedded(model: Model, tiny_mel: MelConfig, unet: Any, tmp_path: Path) -> None:
    (tmp_path / "damaged.wav").write_bytes(b"RIFF, but no more")
    pipeline, plain = LoopPipeline.of(model, PROFILE, Bands()), LoopPipeline(unet, DDIMScheduler(), tiny_mel, PROFILE)
    with pytest.raises(ValueError, match=r"^like .*damaged\.wav: "):
        pipeline.generate([GenerateRequest(like=str(tmp_path / "damaged.wav"))])
    with pytest.raises(ValueError, match=r"^prompt choir: the model's encoder bands has no text side$"):
        pipeline.generate([GenerateRequest(prompt="choir")])
    with pytest.raises(ValueError, match=r"^prompt choir: the model is not conditional, omit it$"):
        plain.generate([GenerateRequest(prompt="choir")])
    with pytest.raises(ValueError, match=r"^prompt choir: only `generate` and `outcomes` embed it"):
        pipeline.generate([GenerateRequest(prompt="choir")], noises=pipeline.noise([GenerateRequest()]))
    other = Bands()
    other.digest = "c" * 16
    with pytest.raises(ValueError, match=r"^encoder bands has the digest c+, the encoder of the model, bands, has b+:"):
        LoopPipeline.of(model, PROFILE, other).generate([GenerateRequest(like="a.wav")])
    with pytest.raises(ValueError, match=r"^the encoder of the model, bands with digest b+, cannot be loaded: set"):
        LoopPipeline.of(model, PROFILE).generate([GenerateRequest(like="a.wav")])


@pytest.mark.parametrize("kind", ["generate", "vary"])
def test_a_request_has_one_condition(kind: str) -> None:
    row = {"kind": kind, "like": "a.wav", **({"source": "b.wav"} if kind == "vary" else {})}
    assert REQUEST.validate_python(row).condition == ("like", "a.wav")
    assert REQUEST.validate_python({**row, "like": None, "prompt": "choir"}).condition == ("prompt", "choir")
    assert REQUEST.validate_python({**row, "like": None}).condition is None
    for other in ({"prompt": "choir"}, {"encoding": "c.wav"}, {"encoding": [1.0]}):
        with pytest.raises(pydantic.ValidationError, match="like"):
            REQUEST.validate_python({**row, **other})
