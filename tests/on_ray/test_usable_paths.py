"""Paths stated by a user, in the form that every process of a job can use, and paths that nodes do not share."""

from pathlib import Path

import pytest

from audiodiff_platform.cluster import require_shared_files, usable_encoder, usable_path
from audiodiff_platform.cluster.shared_paths import MAX_PROBED_FOLDERS
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.shared_steps import with_usable_paths


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    """A shell leaves the tilde in --output_dir=~/runs, and YAML never expands it."""
    options = with_usable_paths(
        TrainOptions(dataset_name="~/mel", output_dir="~/runs", vae="~/vae", preset="tiny-latent")
    )
    assert (options.dataset_name, options.output_dir, options.vae) == (f"{home}/mel", f"{home}/runs", f"{home}/vae")
    assert usable_encoder("clap:~/clap") == f"clap:{home}/clap"
    assert usable_path("output_dir", "./~") == str(home.parent / "~")
    with pytest.raises(
        ValueError,
        match=r"^output_dir ~no-such-user/runs: no home folder for this user: "
        r"use the full path, or \./~no-such-user/runs",
    ):
        usable_path("output_dir", "~no-such-user/runs")


def test_a_submitted_job_takes_absolute_paths(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert usable_path("output_dir", "~/runs") == f"{home}/runs"
    with pytest.raises(ValueError, match=r"^output_dir runs is relative: in a submitted job use an absolute path"):
        usable_path("output_dir", "runs")
    assert usable_path("vae", "owner/name", hub_id=True) == "owner/name"
    assert usable_path("model", "builtin:loops") == usable_path("from_pretrained", "builtin:loops") == "builtin:loops"


def test_one_file_of_each_folder_is_looked_for_on_all_nodes(unshared: Path, tmp_path: Path, probed: list[str]) -> None:
    shared = tmp_path / "shared"
    files = [str(shared / str(number) / name) for number in range(MAX_PROBED_FOLDERS + 1) for name in ("a", "b", "c")]
    for file in files:
        if not file.endswith("a"):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).touch()
    require_shared_files("source", ["s3://bucket/a", *files])
    assert sorted(set(probed)) == sorted(str(shared / str(number) / "b") for number in range(MAX_PROBED_FOLDERS))
    assert len(probed) == 2 * MAX_PROBED_FOLDERS
    (unshared / "take.wav").touch()
    with pytest.raises(
        ValueError,
        match=f"^source {unshared} is missing on 1 of 2 nodes: use a path that all nodes share, or s3:// or gs://$",
    ):
        require_shared_files("source", [files[1], f"{unshared}/take.wav"])
