"""cuBLASLt for tests: NVIDIA's files, libraries made of the C files beside this one, processes that load them."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from cuda_emulator.build import cuda_include

from . import driver

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def cublas_files(end: str) -> list[Path]:
    """Files of the wheel nvidia-cublas, or else of the system's CUDA, whose path ends so."""
    try:
        files = importlib.metadata.files("nvidia-cublas") or []
    except importlib.metadata.PackageNotFoundError:
        home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
        return [path for path in (home / end, home / end.replace("lib/", "lib64/")) if path.exists()]
    return [Path(str(path.locate())) for path in files if path.as_posix().endswith(end)]


def includes() -> list[str]:
    """For a compiler: where cublasLt.h, cuda.h and ours are."""
    folders = [path.parent for path in cublas_files("include/cublasLt.h")]
    return [f"-I{folder}" for folder in (*folders, cuda_include(), ROOT / "csrc")]


def compiled(source: str, into: Path, *options: str) -> Path:
    """A library out of a file of this folder."""
    into.parent.mkdir(parents=True, exist_ok=True)
    command = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", *includes()]
    command += ["-shared", "-fPIC", f"-Wl,-soname,{into.name}", "-o", str(into), str(HERE / source), *options]
    subprocess.run([*command, "-ldl", "-lm"], check=True)
    return into


def build(folder: Path) -> Path:
    """The stand-in driver (its path), with the stand-in cuBLASLt beside it."""
    compiled("libcublasLt.c", folder / "libcublasLt.so.13")
    return driver.build(folder)


def last_words(program: str, **variables: str) -> str:
    """What a fresh process says at its end. It finds only those libraries that these variables lead it to."""
    mine = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "LD_PRELOAD", "TILEGRAD_CUBLASLT")}
    command = [sys.executable, "-c", "from tilegrad import _C\n" + program]
    done = subprocess.run(command, env=mine | variables, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # an exception, never an abort
    return (done.stdout + done.stderr).strip().splitlines()[-1]
