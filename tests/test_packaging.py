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

import tilegrad

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_every_package_of_the_tree_is_listed():
    """setuptools leaves an unlisted package out of the wheel without a word."""
    folders = [path.parent.relative_to(ROOT / "engine") for path in ROOT.glob("engine/**/__init__.py")]
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(
        ".".join(["tilegrad", *folder.parts]) for folder in folders
    )


def test_every_folder_with_python_files_is_a_package():
    assert not [path for path in ROOT.glob("engine/**/*.py") if not (path.parent / "__init__.py").exists()]


def test_engine_cannot_be_imported_under_its_folder_name():
    done = subprocess.run([sys.executable, "-B", "-c", "import engine"], cwd=ROOT, capture_output=True, text=True)
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
