"""Paths stated by a user, in the form that every process of a job can use."""

from pathlib import Path

import pytest

from audiodiff_platform.cluster import usable_encoder, usable_path
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
