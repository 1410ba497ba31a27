"""Structure of the code: forbidden imports, shadowed names, sizes, and recipes that load."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "audiodiff_core").rglob("*.py"))
PLATFORM = sorted((ROOT / "platform" / "audiodiff_platform").rglob("*.py"))
MAX_LINES = 300
MAX_ENTRIES = 18

IMPORT_ALONE = """
import importlib, importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "fastapi", "starlette", "audiodiff_platform"):
            raise ModuleNotFoundError(f"{name} is refused", name=name)

sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
print("imported", len(sys.argv) - 1)
"""


def imports_of(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every import in `file`, including imports inside functions.

    The name is empty for `import module`.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.soak_short
def test_the_core_imports_without_ray_and_http() -> None:
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in CORE]
    command = [sys.executable, "-c", IMPORT_ALONE, *modules]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert completed.stdout == f"imported {len(CORE)}\n", completed.stderr
    assert len(CORE) >= 13


def test_every_recipe_loads() -> None:
    recipes = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
    assert "demo.yaml" in [file.name for file in recipes]
    # Imported here, because the modules of the options load Ray.
    load_recipe = import_module("audiodiff_platform.entry.options").load_recipe
    for file in recipes:
        assert load_recipe(file), f"{file.name} holds no section"


def test_platform_shadows_nothing() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    completed = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout.strip()
    folders = [
        folder
        for top in ("audiodiff_core", "platform", "jobs", "tests", "cluster")
        for folder in (ROOT / top).rglob("*")
        if folder.is_dir()
    ]
    assert [folder for folder in folders if folder.name == "ray"] == []
    assert [folder for folder in folders if folder.name == "platform" and (folder / "__init__.py").exists()] == []


def test_the_core_names_no_module_of_the_platform() -> None:
    refused = {"ray", "fastapi", "starlette", "uvicorn", "audiodiff_platform"}
    named = {file: {module.partition(".")[0] for module, _ in imports_of(file)} & refused for file in CORE}
    assert {file: modules for file, modules in named.items() if modules} == {}


def test_no_product_file_imports_the_deprecated_classes() -> None:
    imports = [(file, module, name) for file in [*CORE, *PLATFORM] for module, name in imports_of(file)]
    deprecated = [
        entry
        for entry in imports
        if (entry[1].startswith("diffusers") and entry[2] in {"AudioDiffusionPipeline", "Mel"})
        or "deprecated" in f"{entry[1]}.{entry[2]}"
    ]
    assert deprecated == []
    unseen = [entry for entry in imports if entry[1] == "diffusers" and not entry[2]]
    assert unseen == [], "names are imported from diffusers one by one, so that this test sees them"


def test_modules_and_folders_stay_small() -> None:
    lines = {file: len(file.read_text().splitlines()) for file in [*CORE, *PLATFORM]}
    assert {file: count for file, count in lines.items() if count > MAX_LINES} == {}
    for package in (ROOT / "audiodiff_core", ROOT / "platform" / "audiodiff_platform"):
        entries = [entry.name for entry in package.iterdir() if entry.name != "__pycache__"]
        assert len(entries) <= MAX_ENTRIES, f"{package.name}: {entries}"
