"""Compiles CUDA C++ and the emulator with g++ into a shared library, and finds CUDA's headers and nvcc.

What has been compiled is kept under ``build/cuda-emulator`` and compiled again when a flag or any file that went into
it has changed. Several processes may ask for the same library at a time: one of them compiles.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EMULATOR = Path(__file__).resolve().parent
CACHE = EMULATOR.parents[1] / "build" / "cuda-emulator"

COMMON = ("-std=c++20", "-g1", "-fPIC", "-fno-gnu-unique", "-DCUDA_EMULATOR", "-Wno-unknown-pragmas")
RUNTIME = ("-O2",)
KERNEL = ("-O1",)  # keeps a kernel's loads and stores what its source says: the vectorizer would merge them
ADDRESS_SANITIZER = ("-fsanitize=address", "-fno-omit-frame-pointer")
# Only the calls that the sanitizers put before each access are wanted: they call instrumentation.cpp.
CHECKED = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fsanitize=alignment")
CALLS = ("memcpy", "memmove", "memset")  # of a kernel, that instrumentation.cpp has to see, too


def library(
    sources: Sequence[Path],
    *,
    defines: Sequence[str] = (),
    includes: Sequence[Path] = (),
    address_sanitizer: bool = False,
    checked: bool = True,
) -> Path:
    """The shared library of these sources (.cu or .cpp) and the emulator.

    ``checked``: the emulator sees every access to memory. ``address_sanitizer`` instead has AddressSanitizer see them:
    the process that loads the library has to have been started in :func:`address_sanitizer_environment`.
    """
    checked = checked and not address_sanitizer
    common = [*COMMON, f"-I{EMULATOR}", "-isystem", str(cuda_include())]
    kernel = [
        *common,
        *KERNEL,
        *(f"-I{path}" for path in includes),
        *(CHECKED if checked else ()),
        *(ADDRESS_SANITIZER if address_sanitizer else ()),
        *(f"-D{define}" for define in defines),
    ]
    # Of an inline function that several units define, the linker takes the first: the emulator must not run one that is
    # watched.
    units: list[tuple[Path, Sequence[str], Sequence[str]]] = [
        (path, [*common, *RUNTIME], ()) for path in sorted(EMULATOR.glob("*.cpp"))
    ]
    units += [(path.resolve(), kernel, CALLS if checked else ()) for path in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda unit: _object(*unit), units))

    link = [_compiler(), "-shared", *(ADDRESS_SANITIZER if address_sanitizer else ()), "-Wl,-Bsymbolic"]
    name = _digest([*link, *map(str, sources), *kernel])
    with _locked(CACHE / name) as directory:
        result = directory / f"{_digest(path.parent.joinpath('stamp').read_text() for path in objects)}.so"
        if not result.exists():
            for outdated in directory.glob("*.so"):
                outdated.unlink()
            partial = result.with_suffix(".partial")
            _run([*link, *map(str, objects), "-ldl", "-o", str(partial)])
            partial.rename(result)
    return result


def cuda_include() -> Path:
    """The folder of cuda_runtime.h: CUDA_HOME's, else that of the wheel nvidia-cuda-runtime, else the system's."""
    return _find("nvidia-cuda-runtime", "include/cuda_runtime.h").parent


def nvcc() -> Path:
    """CUDA's compiler: CUDA_HOME's, else that of the wheel nvidia-cuda-nvcc, else the system's."""
    return _find("nvidia-cuda-nvcc", "bin/nvcc")


def address_sanitizer_environment() -> dict[str, str]:
    """The environment in which a Python process can load a library built with ``address_sanitizer``.

    Both libraries have to be there before anything else is: libasan looks for the C++ runtime when it starts. Python
    itself does not free all that it has allocated.
    """
    preload = [_run([_compiler(), f"-print-file-name={name}"]).strip() for name in ("libasan.so", "libstdc++.so")]
    return {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}


def _find(wheel: str, file: str) -> Path:
    places = [Path(home) / file for home in [os.environ.get("CUDA_HOME")] if home]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = importlib.metadata.files(wheel) or []
        places += [Path(str(path.locate())) for path in found if path.as_posix().endswith("/" + file)]
    places.append(Path("/usr/local/cuda") / file)
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(f"{file}: set CUDA_HOME, or pip install {wheel}")


def _object(source: Path, flags: Sequence[str], calls: Sequence[str]) -> Path:
    """The object file of one source, in a folder of its own beside the list of files that went into it."""
    command = [_compiler(), *flags, "-x", "c++", "-c", str(source)]
    with _locked(CACHE / _digest([*command, _compiler_version()])) as directory:
        result, stamp, needed = (directory / name for name in ("unit.o", "stamp", "unit.d"))
        if not (stamp.exists() and stamp.read_text() == _contents(needed)):
            stamp.unlink(missing_ok=True)
            _run([*command, "-MD", "-MF", str(needed), "-o", str(result)])
            if calls:
                _run(["objcopy", *(f"--redefine-sym={call}=cuda_emulator_{call}" for call in calls), str(result)])
            stamp.write_text(_contents(needed))
    return result


def _contents(make_rule: Path) -> str:
    """The digest of all files that g++'s rule for make names, or of none if one is gone."""
    names = make_rule.read_text().replace("\\\n", " ").split()[1:]
    if not all(map(os.path.exists, names)):
        return ""
    return _digest(_file_digest(name, os.stat(name).st_mtime_ns) for name in names)


@functools.cache  # several units include the same headers
def _file_digest(name: str, _modified: int) -> str:
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        yield directory


def _compiler() -> str:
    compiler = os.environ.get("CXX", "g++")
    found = shutil.which(compiler)
    if found is None:
        raise FileNotFoundError(f"no C++ compiler {compiler!r} on the PATH")
    return found


@functools.cache
def _compiler_version() -> str:
    return _run([_compiler(), "--version"])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout
