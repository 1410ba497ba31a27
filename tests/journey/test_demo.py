"""Small run of the demo job: its outputs follow the contract, and its page is self-contained."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from audiodiff_platform.demo.job import SHIPPED_LOOPS, DemoOptions, demo
from audiodiff_platform.entry.options import load_recipe

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "demo.yaml"


def _small(loops: Path, root: Path) -> Path:
    """Write the demo recipe for four loops, with small images and few steps."""
    (root / "in").mkdir(parents=True)
    for name in ("loop_tabla", "loop_mika", "loop_safari", "ambi_piano"):
        shutil.copy(loops / f"{name}.flac", root / "in")
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["prepare"] |= {
        "input_dir": str(root / "in"),
        "output_dir": str(root / "dataset"),
        "resolution": 32,
        "overlap": 0.5,
        "num_workers": 1,
    }
    recipe["train"] |= {
        "dataset_name": str(root / "dataset"),
        "output_dir": str(root / "train"),
        "max_train_steps": 10,
        "num_workers": 1,
    }
    recipe["generate"] |= {
        "model": str(root / "train" / "model"),
        "output_dir": str(root / "loops"),
        "count": 16,
        "steps": 2,
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root / "recipe.yaml"


@pytest.mark.soak_short
def test_the_demo_ends_with_loops_and_a_page_that_stands_alone(
    local_ray: None, loops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "demo"
    summary = demo(DemoOptions(recipe=_small(loops, root)))
    assert len(list((root / "loops" / "audio").glob("*.wav"))) == 16
    assert len(list((root / "shipped" / "audio").glob("*.wav"))) == SHIPPED_LOOPS
    page = (root / "report.html").read_text()
    assert page.count("<audio controls") == page.count("<img alt") == 16 + 4 + 2
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert f"{summary['frechet_trained']:.3f}" in page
    assert f"{summary['frechet_untrained']:.3f}" in page
    assert "16 generated" in page
    assert "<polyline" in page
    assert summary["spread_generated"] > 0
    assert str(root / "report.html") in capsys.readouterr().err

    again = demo(DemoOptions(recipe=root / "recipe.yaml"))
    assert {key: again[key] for key in again if key != "seconds"} == {
        key: summary[key] for key in summary if key != "seconds"
    }


def test_the_shipped_recipe_trains_on_the_shipped_loops() -> None:
    recipe = load_recipe(RECIPE)
    assert recipe.keys() == {"prepare", "train", "generate"}
    assert getattr(recipe["generate"], "count", 0) >= 128


@pytest.mark.soak
def test_the_whole_demo_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(RECIPE.parents[2] / "tests")
    summary = demo(DemoOptions(recipe=RECIPE))
    print(json.dumps(summary, indent=2))
    assert summary["untrained_over_trained"] >= 8
    assert summary["spread_generated"] >= summary["spread_real"] / 3
