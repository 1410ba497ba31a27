"""Over a thousand malformed files, decoded in one process.

Each file gives samples or a reason. The process survives, its memory stays small, and it decodes good files as before.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.soak_short  # a thousand files

GENERATOR = Path(__file__).parents[1] / "malformed.py"
SECONDS_PER_FILE = 60  # slow machines need less: only a hang exceeds the limit
RATE = 22_050

READ_ALL = """
import hashlib, json, resource, signal, sys
from pathlib import Path
import numpy as np
from audiodiff_core import audio

rate, seconds = int(sys.argv[2]), int(sys.argv[3])
healthy, malformed = (sorted((Path(sys.argv[1]) / part).iterdir()) for part in ("healthy", "malformed"))
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


def digest(file):
    return hashlib.sha256(audio.decode_audio(file, rate)).hexdigest()


healthy = [file for file in healthy if not file.name.startswith(("channels", "rate"))]
digests = {file: digest(file) for file in healthy}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number, file in enumerate(malformed):
    print(json.dumps({"begins": file.name}), flush=True)
    signal.alarm(seconds)  # not handled: the signal ends the process
    outcome = {"name": file.name}
    try:
        blocks = list(audio.stream(file, rate))
        outcome["finite float32"] = all(
            block.dtype == np.float32 and block.ndim == 1 and bool(np.isfinite(block).all()) for block in blocks
        )
        outcome["samples"] = sum(len(block) for block in blocks)
    except audio.AudioDecodeError as error:
        outcome["reason"] = error.reason
    good = healthy[number % len(healthy)]
    outcome["next is good"] = digest(good) == digests[good]
    print(json.dumps(outcome), flush=True)
signal.alarm(0)
print(json.dumps({"grown_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    subprocess.run([sys.executable, str(GENERATOR), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def lines(files: Path) -> list[dict[str, Any]]:
    """Return the reports of the process: one for each file, and the last one for its memory."""
    command = [sys.executable, "-c", READ_ALL, str(files), str(RATE), str(SECONDS_PER_FILE)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    reports = [json.loads(line) for line in completed.stdout.splitlines()]
    assert completed.returncode == 0, f"{reports[-1:]} {completed.stderr[-2_000:]}"
    return reports


@pytest.fixture(scope="module")
def outcomes(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in lines if "name" in line}


def test_every_file_is_accounted_for(files: Path, outcomes: dict[str, dict[str, Any]]) -> None:
    assert sorted(outcomes) == sorted(file.name for file in (files / "malformed").iterdir())
    assert len(outcomes) >= 500
    for name, outcome in outcomes.items():
        assert ("samples" in outcome) != ("reason" in outcome), name
        assert outcome["next is good"], name


def test_what_is_used_is_finite(outcomes: dict[str, dict[str, Any]]) -> None:
    used = {name: outcome for name, outcome in outcomes.items() if "samples" in outcome}
    assert len(used) > 300
    for name, outcome in used.items():
        assert outcome["finite float32"], name
        assert outcome["samples"] > 0, name


def test_a_reason_is_a_line_that_is_the_same_in_every_process(files: Path, outcomes: dict[str, dict[str, Any]]) -> None:
    reasons = {name: outcome["reason"] for name, outcome in outcomes.items() if "reason" in outcome}
    assert len(reasons) > 500
    for name, reason in reasons.items():
        assert 5 < len(reason) < 300, name
        assert "\n" not in reason, name
        assert str(files) not in reason, name
        assert name not in reason, name
        assert not re.search(r"0x[0-9a-f]{4}", reason), f"{name}: {reason}"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("notaudio_", ""),
        ("nosamples_", "no samples|malformed|not audio"),
        ("notfinite_", "NaN or infinite"),
        ("toolarge_", "samples of up to"),
        ("cut_pcm16-wav_", "truncated|not audio|no samples"),
        ("cut_rf64-wav_", "truncated|not audio|no samples"),
        ("cut_pcm16-aiff_", "truncated|not audio"),
        ("cut_stereo-flac_", "truncated|not audio"),
        ("cut_vorbis-ogg_", "truncated|not audio"),
        ("cut_opus-opus_", "truncated|not audio"),
        ("cut_stereo-mp3_[1-7]", "truncated|not audio"),
        ("cut_faststart-m4a_", "truncated|not audio"),
        ("cut_aac-m4a_", "not audio"),
        ("garbage_stereo-flac_(inside|inserted|missing|zeros-inside)", "corrupt"),
        ("garbage_(vorbis-ogg|opus-opus)_(inside|inserted|missing|zeros-inside)", "corrupt"),
        ("lie_pcm16-wav_channels-(0|1025|max)", "[Cc]hannel"),
        ("lie_(au|caf)_channels-1e9", "channels|malformed"),
        ("lie_pcm16-wav_rate-", "rate of|not audio"),
        ("lie_pcm16-wav_datasize-1e9", "truncated"),
        ("lie_stereo-flac_frames-max", "truncated"),
        ("lie_(faststart|fragments)-m4a_packets-[1-9]", "states packets of"),
    ],
)
def test_what_cannot_be_used_has_the_right_reason(outcomes: dict[str, dict[str, Any]], kind: str, reason: str) -> None:
    matching = {name: outcome for name, outcome in outcomes.items() if re.match(kind, name)}
    assert matching
    for name, outcome in matching.items():
        assert re.search(reason, outcome.get("reason", "it was used")), f"{name}: {outcome}"
        assert "reason" in outcome, name


@pytest.mark.parametrize(
    "kind",
    [
        "silent_",
        "extension_",
        "garbage_[a-z0-9-]*_(tag-after|zeros-after)",
        "lie_pcm16-wav_(pipe|unfinished|datasize-4g|datasize-2g|riffsize)",
    ],
)
def test_what_can_be_used_is_used(outcomes: dict[str, dict[str, Any]], kind: str) -> None:
    matching = {name: outcome for name, outcome in outcomes.items() if re.match(kind, name)}
    assert matching
    assert {name: outcome["reason"] for name, outcome in matching.items() if "reason" in outcome} == {}


def test_memory_stays_bounded(lines: list[dict[str, Any]]) -> None:
    assert lines[-1]["grown_mb"] < 200
