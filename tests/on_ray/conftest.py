"""Datasets and models that several tests read."""

import shutil
from pathlib import Path

import pytest
import torch

from audiodiff_core.checkpoint import ModelRecord, save_model
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, build_unet
from audiodiff_platform.prepare import PrepareOptions, prepare

SMALL = {"resolution": "32", "hop_length": 1024}


@pytest.fixture(scope="session")
def few_loops(loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four loops, one of them in a subfolder, with a file that is not audio."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "sub").mkdir()
    for name in ("loop_tabla", "loop_mika", "bass_hit_c"):
        shutil.copy(loops / f"{name}.flac", folder)
    shutil.copy(loops / "ambi_piano.flac", folder / "sub")
    (folder / "notes.txt").write_text("not audio")
    return folder


@pytest.fixture(scope="session")
def dataset(local_ray: None, few_loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset of 32x32 images in several shards."""
    folder = tmp_path_factory.mktemp("dataset") / "mel"
    prepare(PrepareOptions(input_dir=str(few_loops), output_dir=str(folder), overlap=0.5, shard_minutes=0.001, **SMALL))
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights for 32x32 images."""
    folder = tmp_path_factory.mktemp("model") / "model"
    mel = MelConfig(x_res=32, y_res=32, hop_length=1024)
    torch.manual_seed(0)
    record = ModelRecord(recipe={}, data_digest="none", metrics={})
    save_model(folder, build_unet("tiny", mel), PRESETS["tiny"].objective.scheduler("ddim"), mel, record)
    return folder
