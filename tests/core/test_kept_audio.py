"""The sound of sources: what is not regenerated is the source's own samples, at the source's level."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from audiodiff_core.audio import decode_audio
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import Audio, LoopPipeline
from audiodiff_core.sampling import REQUEST, ExecutionProfile, GenerateRequest

RATE, WIDTH = 22_050, 128
MARGIN = round(0.05 * RATE)
Samples = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def pipeline(make_unet: Callable[[int], Any], tiny_mel: MelConfig) -> LoopPipeline:
    return LoopPipeline(make_unet(0), Objective().scheduler("ddim"), tiny_mel, ExecutionProfile(batch_size=2))


@pytest.fixture(scope="module", params=["loop_tabla", "ambi_piano", "loop_mika"])
def loop(request: pytest.FixtureRequest, loops: Path) -> Samples:
    """Samples of a real loop, at a level that is not that of generated loops."""
    return 0.3 * decode_audio(str(loops / f"{request.param}.flac"), RATE, longest_s=100)


def snr_db(audio: Samples, source: Samples) -> float:
    error = float(np.square(audio - source).sum())
    return float("inf") if error == 0 else 10 * np.log10(float(np.square(source).sum()) / error)


def level_db(audio: Samples) -> float:
    return 10 * float(np.log10(np.square(audio).mean() + 1e-12))


@pytest.mark.parametrize(("start_s", "end_s"), [(0.5, 0.9), (0.0, 0.4), (1.1, 1.486)])
def test_inpainting_keeps_the_samples_outside_the_span(
    pipeline: LoopPipeline, loop: Samples, start_s: float, end_s: float
) -> None:
    request = GenerateRequest(seed=1, steps=4, width=WIDTH)
    (made,) = pipeline.inpaint([request], [Audio(loop, RATE)], [[(start_s, end_s)]])
    source = loop[: len(made.audio)]
    first, last = (round(seconds * RATE) for seconds in (start_s, end_s))
    before, after = slice(0, max(0, first - MARGIN)), slice(min(last + MARGIN, len(source)), len(source))
    for part in (before, after):
        if part.stop - part.start > 0 and np.any(source[part]):
            assert snr_db(made.audio[part], source[part]) >= 60
    assert not np.array_equal(made.audio[first:last], source[first:last])
    jumps = np.abs(np.diff(made.audio))
    for join in (first, last):
        near = slice(max(0, join - RATE // 200), join + RATE // 200)
        if 0 < join < len(source) - MARGIN:
            around = np.abs(np.diff(source[max(0, join - 2 * MARGIN) : join + 2 * MARGIN])).max()
            assert jumps[near].max() <= 2 * max(around, jumps[first:last].max())


def test_the_regenerated_part_has_the_level_of_its_image(pipeline: LoopPipeline, loop: Samples) -> None:
    """Check the level where the network returns the source: the regenerated span is as loud as the source."""
    request = GenerateRequest(seed=1, steps=500, width=WIDTH)
    (made,) = pipeline.inpaint([request], [Audio(loop, RATE)], [[(0.5, 0.9)]], start_step=499)
    span = slice(round(0.5 * RATE), round(0.9 * RATE))
    assert level_db(made.audio[span]) == pytest.approx(level_db(loop[span]), abs=3)


def test_an_extension_begins_with_the_samples_of_its_source(pipeline: LoopPipeline, loop: Samples) -> None:
    request = GenerateRequest(seed=1, steps=4, width=WIDTH)
    (made,) = pipeline.extend([request], 2.5, [Audio(loop, RATE)])
    kept = WIDTH * 256 - MARGIN
    assert snr_db(made.audio[:kept], loop[:kept]) >= 60
    assert len(made.audio) > 2 * RATE
    assert np.any(made.audio[kept + 2 * MARGIN :])


def test_bars_cut_an_extension_and_leave_its_beginning(pipeline: LoopPipeline, loop: Samples) -> None:
    request = REQUEST.validate_python(
        {"kind": "extend", "source": "take", "bars": 1, "bpm": 96, "steps": 3, "width": WIDTH}
    )
    (made,) = pipeline.generate([request], sources={"take": Audio(loop, RATE)})
    assert len(made.audio) == round(4 * 60 / 96 * RATE)
    kept = WIDTH * 256 - MARGIN
    assert snr_db(made.audio[:kept], loop[:kept]) >= 60


def test_an_image_as_source_has_no_samples_to_keep(pipeline: LoopPipeline) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, WIDTH), np.uint8)
    (made,) = pipeline.inpaint([GenerateRequest(steps=3, width=WIDTH)], [image], [[(0.5, 0.9)]])
    assert float(np.abs(made.audio).max()) == pytest.approx(10 ** (-1 / 20), rel=1e-5)


def test_masks_keep_samples_only_in_whole_columns(pipeline: LoopPipeline, loop: Samples) -> None:
    """Check a mask of one band over all columns: no column is kept whole, so all samples are synthesized."""
    mask = np.zeros((16, WIDTH), np.bool_)
    mask[3] = True
    (made,) = pipeline.inpaint([GenerateRequest(steps=3, width=WIDTH)], [Audio(loop, RATE)], [mask])
    assert snr_db(made.audio, loop[: len(made.audio)]) < 30


def test_seamless_inpainting_keeps_samples_around_the_wrap(pipeline: LoopPipeline, loop: Samples) -> None:
    request = REQUEST.validate_python(
        {"kind": "inpaint", "source": "take", "regenerate": [[0.5, 0.9]], "steps": 3, "width": WIDTH, "seamless": True}
    )
    (made,) = pipeline.generate([request], sources={"take": Audio(loop, RATE)})
    assert len(made.audio) == WIDTH * 256
    source = loop[: len(made.audio)]
    kept = np.r_[0 : round(0.5 * RATE) - MARGIN, round(0.9 * RATE) + MARGIN : len(source) - 1]
    assert snr_db(made.audio[kept], source[kept]) >= 60
