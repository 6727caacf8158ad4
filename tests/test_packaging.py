"""An installed tilegrad: every package, the type marker, the version, and an import that costs little."""

import importlib.resources
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where the standard library has none

import pytest

import tilegrad

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"engine": "tilegrad", "kernels": "tilegrad.kernels"}  # folder: the package that it is installed as
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_every_package_of_the_tree_is_listed():
    """setuptools leaves an unlisted package out of the wheel without a word."""
    folders = [path.parent.relative_to(ROOT) for top in SOURCES for path in ROOT.glob(f"{top}/**/__init__.py")]
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(
        ".".join([SOURCES[folder.parts[0]], *folder.parts[1:]]) for folder in folders
    )
    assert PYPROJECT["tool"]["setuptools"]["package-dir"] == {name: top for top, name in SOURCES.items()}


def test_every_folder_with_python_files_is_a_package():
    files = [path for top in SOURCES for path in ROOT.glob(f"{top}/**/*.py")]
    assert not [path for path in files if not (path.parent / "__init__.py").exists()]


@pytest.mark.parametrize("folder", SOURCES)
def test_a_source_folder_cannot_be_imported_under_its_name(folder: str):
    done = subprocess.run([sys.executable, "-B", "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "tilegrad" in last


def fresh_import() -> tuple[float, set[str]]:
    """Seconds that `import tilegrad` takes in a fresh interpreter, and the top-level modules then loaded."""
    program = (
        "import json, sys, time; start = time.perf_counter(); import tilegrad; "
        "print(json.dumps([time.perf_counter() - start, list(sys.modules)]))"
    )
    seconds, modules = json.loads(subprocess.check_output([sys.executable, "-c", program]))
    return seconds, {name.partition(".")[0] for name in modules}


def test_import_loads_nothing_heavy():
    _, modules = fresh_import()
    assert "numpy" in modules
    assert not modules & {
        "torch", "triton", "cupy", "scipy", "sklearn", "matplotlib", "safetensors", "click", "tqdm"
    }  # fmt: skip


def test_import_takes_less_than_three_tenths_of_a_second():
    """The best of several: a busy machine slows single runs, never speeds one up."""
    assert min(fresh_import()[0] for _ in range(7)) < 0.3


def test_type_marker_is_shipped():
    assert (importlib.resources.files("tilegrad") / "py.typed").is_file()


def test_version_is_the_same_everywhere():
    assert tilegrad.__version__ == PYPROJECT["project"]["version"] == metadata.version("tilegrad")
