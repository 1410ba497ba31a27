"""The model that is installed with the package: its size, its recipe, and its loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMPipeline

from audiodiff_core.checkpoint import CheckpointError, convert, load_model, load_outline
from audiodiff_core.files.builtin import FOLDER
from audiodiff_core.loops import level_db
from audiodiff_core.models import fold_of
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest

LOOPS = "builtin:loops"
MAX_BYTES = 4_000_000
ROOT = Path(__file__).parents[2]


def test_the_weights_are_small_and_of_the_recipe() -> None:
    weights = list((FOLDER / "loops").rglob("*.safetensors"))
    assert 0 < sum(file.stat().st_size for file in weights) <= MAX_BYTES
    record = load_model(LOOPS).record
    assert record is not None
    stated = yaml.safe_load((ROOT / "jobs/recipes/pretrained.yaml").read_text())["train"]
    made = ("preset", "train_batch_size", "learning_rate", "lr_warmup_steps", "max_train_steps")
    assert {name: record.recipe[name] for name in made} == {name: stated[name] for name in made}
    card = (FOLDER / "loops" / "README.md").read_text()
    assert '"max_train_steps": 700' in card


def test_it_generates_audible_loops_that_differ() -> None:
    pipeline = LoopPipeline.from_pretrained(LOOPS, ExecutionProfile.here())
    loops = list(pipeline.generate([GenerateRequest(seed=seed, steps=8) for seed in range(4)]))
    assert all(-40 < level_db(loop.audio) < 0 for loop in loops)
    assert all(loop.image.std() > 10 for loop in loops)
    images = np.stack([loop.image for loop in loops]).astype(float).reshape(4, -1)
    assert np.abs(np.corrcoef(images) - np.eye(4)).max() < 0.98


def test_diffusers_loads_it() -> None:
    ours = load_model(LOOPS)
    theirs = DDIMPipeline.from_pretrained(FOLDER / "loops")
    bands, columns = fold_of(ours.unet)
    sides = (ours.mel.y_res // bands, ours.mel.x_res // columns)
    sample = torch.randn(1, ours.unet.config.in_channels, *sides, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.unet.float()(sample, 500).sample
        assert torch.equal(ours.unet(sample, 500).sample, expected)


@pytest.mark.parametrize("read", [load_model, load_outline])
def test_an_unknown_name_is_an_error_that_lists_the_names(read: object) -> None:
    assert callable(read)
    with pytest.raises(CheckpointError, match=r"^builtin:drums: no model of this name: use one of builtin:loops$"):
        read("builtin:drums")


@pytest.mark.parametrize("name", ["builtin:", "builtin:.", "builtin:..", "builtin:../models", "builtin:/tmp"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(CheckpointError, match="no model of this name"):
        load_model(name)


def test_a_conversion_halves_the_weights(tmp_path: Path) -> None:
    convert(LOOPS, tmp_path / "full")
    convert(tmp_path / "full", tmp_path / "half", float16=True)
    full, half = (
        sum(file.stat().st_size for file in (tmp_path / name).rglob("*.safetensors")) for name in ("full", "half")
    )
    assert half == pytest.approx(full / 2, rel=0.05)
    one, other = load_model(LOOPS).unet.state_dict(), load_model(tmp_path / "half").unet.state_dict()
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
