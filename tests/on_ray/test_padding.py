"""Slices that are mostly padding are counted, and prepare names settings that avoid them."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiodiff_core.mel import MelConfig
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.prepare.padding import Padding

RATE = 22_050


def counted(durations_s: list[float], slice_s: float, tails: int = 0) -> Padding:
    padding = Padding()
    for seconds in durations_s:
        padding.add({"index": 0, "duration_s": min(seconds, slice_s)}, slice_s)
    for _ in range(tails):
        padding.add({"index": 3, "duration_s": 0.1 * slice_s}, slice_s)
    return padding


def test_a_slice_counts_if_more_than_half_of_it_is_padding() -> None:
    assert counted([1.0, 2.0, 0.5, 0.499, 0.01], 1.0).share == pytest.approx(2 / 5)
    assert counted([1.0], 1.0, tails=3).share == pytest.approx(3 / 4)
    assert Padding().share == 0


def test_shares_add_up_over_records_and_leave_out_shards_without_counts() -> None:
    one, other = counted([0.1, 0.1, 1.0], 1.0), counted([0.1, 0.234], 1.0, tails=1)
    total = Padding.of([{"padding": one.record()}, {"rows": 7}, {"padding": other.record()}])
    assert (total.slices, total.files, total.tails) == (6, {"0.1": 3, "0.23": 1}, 1)


def test_a_small_share_needs_no_advice() -> None:
    assert counted([0.1] + [1.0] * 9, 1.0).advice(MelConfig()) is None
    assert counted([0.1] * 2 + [1.0] * 9, 1.0).advice(MelConfig()) is not None


@pytest.mark.parametrize("seconds", [2.5, 1.2, 0.4, 0.11, 0.03])
@pytest.mark.parametrize(
    "mel", [MelConfig(), MelConfig(x_res=64, y_res=64, hop_length=1_024), MelConfig(sample_rate=44_100)]
)
def test_the_suggested_settings_fit_the_files(mel: MelConfig, seconds: float) -> None:
    padding = counted([seconds] * 5, mel.slice_duration_s)
    advice = padding.advice(mel)
    if seconds >= 0.5 * mel.slice_duration_s:
        assert advice is None
        return
    assert advice is not None
    suggested = [option.strip() for option in advice.partition("; use ")[2].split(" or ")]
    assert suggested[-1] == "longer files"
    assert len(suggested) > 1
    for option in suggested[:-1]:
        width = re.search(r"--resolution (\d+),(\d+)", option)
        hop = re.search(r"--hop_length (\d+)", option)
        changed = mel.model_copy(
            update={
                "x_res": int(width[1]) if width else mel.x_res,
                "hop_length": int(hop[1]) if hop else mel.hop_length,
            }
        )
        changed = MelConfig.model_validate(changed.model_dump())
        assert width is None or int(width[2]) == mel.y_res
        assert seconds / 4 < changed.slice_duration_s <= seconds


def test_files_too_short_for_any_setting_leave_longer_files() -> None:
    advice = counted([0.0001] * 3, 1.0).advice(MelConfig())
    assert advice is not None
    assert advice.endswith("use longer files")


def test_padded_ends_are_best_dropped() -> None:
    advice = counted([1.0] * 3 + [0.1], 1.0, tails=4).advice(MelConfig())
    assert (
        advice == "62 % of the slices (5 of 8) are more than half padding, most of them ends of files: use --tail drop"
    )


def test_prepare_reports_the_share_and_settings_that_end_it(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "one-shots"
    source.mkdir()
    generator = np.random.default_rng(0)
    for index in range(6):
        soundfile.write(source / f"{index}.wav", 0.1 * generator.standard_normal(round(0.4 * RATE)), RATE)
    soundfile.write(source / "long.wav", 0.1 * generator.standard_normal(4 * RATE), RATE)
    options = {"input_dir": str(source), "resolution": "64", "hop_length": 512, "num_workers": 1}
    summary = prepare(PrepareOptions(output_dir=str(tmp_path / "padded"), **options))
    assert summary["mostly_padding"] == pytest.approx(6 / 8, abs=1e-4)
    line = next(line for line in capsys.readouterr().err.splitlines() if "padding" in line)
    assert "warning: 75 % of the slices (6 of 8) are more than half padding: their files last 0.4 s (median)" in line
    assert "--hop_length 128" in line
    again = prepare(PrepareOptions(output_dir=str(tmp_path / "padded"), **options))
    assert again["mostly_padding"] == summary["mostly_padding"]
    assert "6 of 8" in capsys.readouterr().err
    better = prepare(PrepareOptions(output_dir=str(tmp_path / "better"), **{**options, "hop_length": 128}))
    assert better["mostly_padding"] == 0
    assert "half padding" not in capsys.readouterr().err
