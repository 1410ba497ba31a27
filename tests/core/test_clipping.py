"""Share of clipped samples."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiodiff_core.loops import clipped_share


def test_samples_at_full_scale_are_clipped_in_both_directions() -> None:
    audio = np.array([0, 0.5, 32_766 / 32_768, 32_767 / 32_768, 1.2, -1, -0.9, 0], np.float32)
    assert clipped_share(audio) == 3 / 8
    assert clipped_share(np.zeros(4, np.float32)) == 0


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_a_loud_loop_is_clipped_and_a_real_loop_is_not(loops: Path, gain: float) -> None:
    audio, _ = soundfile.read(loops / "loop_mika.flac", dtype="float32")
    share = clipped_share(np.clip(gain * audio, -1, 1).astype(np.float32))
    assert (share > 0.001) == (gain > 1)
