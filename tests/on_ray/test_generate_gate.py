"""generate with a quality gate: rejected loops and their reasons, replacements, growth, interruptions, best_of."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr

from audiodiff_core.evaluation import Items
from audiodiff_core.pipeline import Loop
from audiodiff_core.pipeline.loop_file import Origin
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.generate.decisions import Candidate, Decisions
from audiodiff_platform.generate.gate import Gate
from audiodiff_platform.generate.gate_options import GateOptions
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.reference import Reference
from audiodiff_platform.mel_data.loops_folder import LOOPS_PAGE, LOOPS_RUN
from tests.in_process import in_process

SEAM = {"reject": ["seam"], "max_seam_score": 1.1}
"""A check that rejects some of the loops of the random model."""


def _options(model: Path, out: Path, **more: Any) -> GenerateOptions:
    defaults = {"steps": 2, "num_workers": 1, "batch_size": 2}
    return GenerateOptions(model=str(model), output_dir=str(out), **{**defaults, **more})


def _audio(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "audio").iterdir()}


def _manifest(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "manifest").to_pylist()
    return rows


def _content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder except those that name the generation of a lease or the rate of a run."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in (LOOPS_RUN, LOOPS_PAGE))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.parent.name != "_commits"}


@pytest.fixture(scope="module")
def twelve(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The loops 0 to 11 without a gate."""
    out = tmp_path_factory.mktemp("twelve") / "loops"
    with in_process():
        generate(_options(model, out, count=12))
    return out


@pytest.fixture(scope="module")
def four(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Any]]:
    """The first four loops with a good seam, and the summary of their job."""
    out = tmp_path_factory.mktemp("four") / "loops"
    with in_process():
        summary = generate(_options(model, out, count=4, **SEAM))
    return out, summary


def test_other_seeds_replace_rejected_loops(four: tuple[Path, Mapping[str, Any]], twelve: Path) -> None:
    out, summary = four
    rows, plain = _manifest(out), {row["seed"]: row for row in _manifest(twelve)}
    assert [row["seed"] for row in rows] == list(range(len(rows)))
    delivered = [row for row in rows if row["path"]]
    good = [seed for seed, row in plain.items() if row["seam_score"] <= 1.1][:4]
    assert [row["seed"] for row in delivered] == good
    assert delivered == [plain[seed] for seed in good]
    assert _audio(out) == {Path(row["path"]).name: (twelve / row["path"]).read_bytes() for row in delivered}
    rejected = [row for row in rows if row["path"] is None]
    assert rejected
    for row in rejected:
        score = plain[row["seed"]]["seam_score"]
        assert row["reason"] == f"rejected: seam (score {score:.3g}, at most 1.1)"
        assert (row["seam_score"], row["sha256"], row["steps"]) == (score, None, 2)
    assert {name: summary[name] for name in ("loops", "accepted", "failed", "candidates", "rejected")} == {
        "loops": 4, "accepted": 4, "failed": 0, "candidates": len(rows), "rejected": {"seam": len(rejected)},
    }  # fmt: skip
    assert not (out / "_candidates" / "audio").exists()


def test_growth_gives_the_loops_of_one_run(
    four: tuple[Path, Mapping[str, Any]], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "loops"
    generate(_options(model, out, count=2, **SEAM))
    first = {file: file.stat().st_mtime_ns for file in (out / "audio").iterdir()}
    assert len(first) == 2
    summary = generate(_options(model, out, count=4, node_price=36_000, **SEAM))
    *_, delivered, closing = capsys.readouterr().err.splitlines()
    assert delivered.startswith("loops: "), "the closing line states the cost of the delivery too"
    assert closing.startswith(f"candidates: {summary['candidates_per_minute']:,.1f} candidates/min")
    assert closing.endswith(f", cost {summary['cost']:,.2f}")
    assert (_audio(out), _manifest(out)) == (_audio(four[0]), _manifest(four[0]))
    assert {file: file.stat().st_mtime_ns for file in first} == first
    assert summary["rejected"] == four[1]["rejected"]
    with pytest.raises(ValueError, match="which is not requested"):
        generate(_options(model, out, count=2, **SEAM))


@pytest.mark.parametrize("stage", ["candidates", "delivery", "a delivered shard"])
def test_an_interrupted_job_ends_with_the_same_bytes(
    four: tuple[Path, Mapping[str, Any]], model: Path, tmp_path: Path, stage: str
) -> None:
    out = tmp_path / "loops"
    shutil.copytree(four[0], out)
    (out / "_SUCCESS").unlink()
    if stage == "a delivered shard":
        (out / "_commits" / "000000.json").unlink()
        next((out / "audio").iterdir()).unlink()
    else:
        for name in ("audio", "manifest", "_commits", "_plan"):
            shutil.rmtree(out / name)
    if stage == "candidates":
        (out / "_candidates" / "_SUCCESS").unlink()
        (out / "_candidates" / "_commits" / "000001.json").unlink()
        (out / "_candidates" / "audio").mkdir()
        (out / "_candidates" / "audio" / "0000000004.wav").write_bytes(b"of a worker that died")
    generate(_options(model, out, count=4, **SEAM))
    assert _content(out) == _content(four[0])


def test_lost_files_are_generated_again(
    four: tuple[Path, Mapping[str, Any]], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "loops"
    shutil.copytree(four[0], out)
    next((out / "audio").iterdir()).unlink()
    (out / "_candidates" / "measured" / "000001.parquet").unlink()
    generate(_options(model, out, count=4, **SEAM))
    assert capsys.readouterr().err.count("1 committed files are missing or have another size") == 2
    assert _content(out) == _content(four[0])


@pytest.mark.workers
@pytest.mark.soak
def test_two_workers_give_the_same_bytes(
    local_ray: None, four: tuple[Path, Mapping[str, Any]], model: Path, tmp_path: Path
) -> None:
    generate(_options(model, tmp_path / "loops", count=4, num_workers=2, **SEAM))
    assert _content(tmp_path / "loops") == _content(four[0])


def test_a_gated_folder_is_verified_and_keeps_its_settings(four: tuple[Path, Mapping[str, Any]], model: Path) -> None:
    summary = generate(_options(model, four[0], count=4, verify=True))
    assert summary.keys() <= four[1].keys()
    assert {**summary, "seconds": 0} == {name: four[1][name] for name in summary} | {"seconds": 0}
    with pytest.raises(ValueError, match=r"max_seam_score is 1\.1 in the folder, 2\.0 in this job"):
        generate(_options(model, four[0], count=4, reject=["seam"], max_seam_score=2))
    with pytest.raises(ValueError, match=r"reject is \['seam'\] in the folder, None in this job"):
        generate(_options(model, four[0], count=4))


def test_duplicates_of_delivered_loops_are_rejected(model: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"1 of 2 loops are accepted among 4 candidates, .*\(rejected: 3 duplicate\)"):
        generate(
            _options(
                model, tmp_path / "none", count=2, seed=2**32 - 4, reject=["duplicate"], min_duplicate_distance=100
            )
        )


def test_the_best_of_each_place_is_delivered(twelve: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "loops"
    generate(_options(model, out, count=2, best_of=3, best_by="level"))
    rows, levels = _manifest(out), [row["level_db"] for row in _manifest(twelve)]
    best = [max(places, key=lambda seed: levels[seed]) for places in (range(3), range(3, 6))]
    assert [row["seed"] for row in rows if row["path"]] == best
    assert [row["seed"] for row in rows] == list(range(6))
    worse = next(row for row in rows if row["path"] is None)
    assert worse["reason"] == (
        f"rejected: best_of (level_db {worse['level_db']:.3g}, {levels[best[0]]:.3g} in {best[0]:010d})"
    )


def test_copies_of_the_reference_are_rejected_and_requests_are_not_replaced(
    dataset: Path, few_loops: Path, model: Path, tmp_path: Path
) -> None:
    source = str(few_loops / "loop_tabla.flac")
    (tmp_path / "requests.csv").write_text(
        f'id,kind,source,regenerate,slice\ncopy,inpaint,{source},"[[0.1, 0.2]]",2\nown,generate,,,\n'
    )
    options = _options(
        model, tmp_path / "loops", requests=str(tmp_path / "requests.csv"), reject=["copy"], reference=str(dataset)
    )
    summary = generate(options)
    copy, own = _manifest(tmp_path / "loops")
    assert copy["reason"].startswith("rejected: copy of loop_tabla.flac (distance ")
    assert (copy["path"], own["path"], own["reason"]) == (None, "audio/own.wav", None)
    assert (summary["accepted"], summary["candidates"], summary["rejected"]) == (1, 2, {"copy": 1})
    assert generate(options)["accepted"] == 1
    with pytest.raises(ValueError, match=r"copy_quantile is 0\.01 in the folder, 0\.5 in this job"):
        generate(options.model_copy(update={"copy_quantile": 0.5}))


def _loop(audio: Any) -> Loop:
    samples = np.asarray(audio, np.float32)
    image = np.zeros((32, 32), np.uint8)
    return Loop(GenerateRequest(), image, samples, 0, ExecutionProfile.here(), Origin())


def test_silence_and_clipping_are_rejected_and_real_loops_are_not(loops: Path) -> None:
    gate = Gate(GateOptions(reject=("silence", "clipping", "seam")), 22_050)
    quiet = gate.reason(_loop(np.zeros(22_050)), None)
    assert quiet == "rejected: silence (level -200.0 dB, at least -40 dB)"
    wave = np.sin(np.arange(22_050) / 20)
    assert str(gate.reason(_loop(np.clip(2 * wave, -1, 1)), None)).startswith("rejected: clipping (share 0.6")
    assert str(gate.reason(_loop(wave * np.linspace(0.1, 0.9, 22_050)), None)).startswith("rejected: seam (score ")
    for file in loops.glob("loop_*.flac"):
        audio, rate = soundfile.read(file, dtype="float32", always_2d=True)
        assert gate.reason(_loop(soxr.resample(audio.mean(axis=1), rate, 22_050)), None) is None


def test_the_distance_between_tracks_is_the_distance_of_copies() -> None:
    features = np.array([[0.0, 0], [0.1, 0], [3, 4], [3, 4.5]])
    options = GateOptions(reject=("copy",), reference="data", copy_quantile=0)
    reference = Reference.of(Items(features, ["a", "a", "b", "b"]), options)
    assert reference.min_distance == pytest.approx(np.hypot(2.9, 4))
    assert reference.nearest(np.array([3.0, 5])) == (0.5, "b")
    with pytest.raises(ValueError, match=r"are of one track.*: state min_copy_distance"):
        Reference.of(Items(features, ["a"] * 4), options)
    stated = GateOptions(reject=("copy",), reference="data", min_copy_distance=0.25)
    assert Reference.of(Items(features, ["a"] * 4), stated).min_distance == 0.25


def test_decisions_depend_on_earlier_candidates_only() -> None:
    generator = np.random.default_rng(0)
    candidates = [
        Candidate(f"{number}", None, generator.uniform(size=2), float(generator.uniform())) for number in range(300)
    ]
    options = GateOptions(reject=("duplicate",), min_duplicate_distance=0.1, best_of=3)
    at_once = Decisions(options, None)
    at_once.add(candidates)
    assert 20 < at_once.accepted < 100
    for wanted in (1, 10, at_once.accepted):
        bit_by_bit = Decisions(options, wanted)
        for first in range(0, 300, 7):
            bit_by_bit.add(candidates[first : first + 7])
        assert bit_by_bit.complete
        assert bit_by_bit.reasons == at_once.reasons[: len(bit_by_bit.reasons)]
        assert bit_by_bit.reasons.count(None) == wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reject": ["loud"]}, "reject loud: is unknown, use silence, clipping, seam, copy, duplicate"),
        ({"max_seam_score": 2}, "max_seam_score is for reject seam"),
        ({"reject": ["copy"]}, "reject copy: reference is required"),
        ({"reference": "data"}, "reference is for reject copy"),
        (
            {"reject": ["copy"], "reference": "data", "copy_quantile": 0.1, "min_copy_distance": 1},
            "copy_quantile with min_copy_distance: state one of them",
        ),
        ({"best_by": "level"}, "best_by is for best_of"),
        ({"best_of": 2, "sweep": ["eta=0,1"]}, "best_of is for count alone"),
        ({"best_of": 4, "seed": 2**32 - 8}, "count 3 and best_of 4: the last seed must be at most 4294967295"),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateOptions(model="m", output_dir="o", count=3, **values)
