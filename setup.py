"""The C++ extension; everything else is declared in pyproject.toml.

Where it does not compile, the installation goes on without it: ``tilegrad info`` says so, and the reference runs.

The CUDA kernels are a part of it where nvcc is found: in ``CUDA_HOME`` or ``CUDA_PATH``, on the ``PATH``, or as the
wheel nvidia-cuda-nvcc in the building environment. ``TILEGRAD_CUDA=0`` leaves them out, and with ``TILEGRAD_CUDA=1`` it
is an error if they cannot be built. ``TILEGRAD_CUDA_ARCHS="80 90a"`` builds them for other chips than
``ARCHITECTURES``.

``TILEGRAD_SANITIZE=address,undefined`` or ``thread`` builds it for these sanitizers of the compiler (`make sanitize`).
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CPU = "csrc/cpu/"
# A unit for each instruction set, of which one is chosen at run time; no other code may use more than the baseline.
UNITS = {"baseline.cpp": []}
BASELINE = []
if platform.machine().lower() in ("x86_64", "amd64"):
    BASELINE = ["-march=x86-64-v2"]
    AVX512 = [
        *("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ]
    UNITS |= {
        "avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
        "avx512.cpp": AVX512,
        "avx512bf16.cpp": [*AVX512, "-mavx512bf16"],
    }

# cuBLASLt is loaded at run time: nothing of CUDA is needed to compile what calls it.
CUBLASLT = sorted(Path("csrc/cuda").glob("cublaslt*.cpp"))
CUDA_UNITS = sorted({*Path("csrc/cuda").glob("*.cu"), *Path("csrc/cuda").glob("*.cpp")} - {*CUBLASLT})

OPTIMIZED = ["-O3", "-g0"]
SANITIZED = []
if sanitizer := os.environ.get("TILEGRAD_SANITIZE"):
    OPTIMIZED = ["-O1", "-g1", "-fno-omit-frame-pointer"]  # what is sanitized takes minutes to compile with more
    SANITIZED = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]

# Machine code for 8.x, for 9.0 with what only it has (wgmma), and for 10.x. Chips after that translate PTX, of the last
# number without a letter: that one may use clusters, which they have too.
ARCHITECTURES = "80 90a 100"
CUDA_REQUIRED = os.environ.get("TILEGRAD_CUDA") == "1"
CUDA_WANTED = os.environ.get("TILEGRAD_CUDA") != "0" and not SANITIZED


# --- CUDA -------------------------------------------------------------------------------------------------------------


def find_nvcc():
    folders = [Path(os.environ[home], "bin") for home in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(home)]
    folders += map(Path, os.get_exec_path())
    if wheels := importlib.util.find_spec("nvidia"):
        folders += (found for path in wheels.submodule_search_locations for found in Path(path).glob("cu*/bin"))
    return shutil.which("nvcc", path=os.pathsep.join(map(str, folders)))


class Toolkit:
    """What belongs to an nvcc, which may be a script that calls the one of a toolkit elsewhere."""

    def __init__(self, nvcc):
        said = subprocess.run([nvcc, "-dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        found = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
        if not found:
            raise CompileError(said.strip().partition("\n")[0] or f"{nvcc} does not say where its toolkit is")
        top = Path(found[1]).resolve()
        runtimes = [path for folder in ("lib64", "lib") for path in top.glob(f"{folder}/libcudart_static.a")]
        if not runtimes:
            raise CompileError(f"{top} has no libcudart_static.a")
        self.include, self.runtime = str(top / "include"), str(runtimes[0])
        numbers = re.split(r"[\s,;]+", (os.environ.get("TILEGRAD_CUDA_ARCHS") or ARCHITECTURES).strip())
        codes = {f"sm_{number}": number for number in numbers}
        if plain := [number for number in numbers if number.isdigit()]:
            codes[f"compute_{plain[-1]}"] = plain[-1]
        self.architectures = list(codes)
        self.command = [
            *(nvcc, "-std=c++17", "-O3", "--threads=2", "--compress-mode=size", "-Xcompiler=-fPIC,-fvisibility=hidden"),
            *(f"-gencode=arch=compute_{number},code={code}" for code, number in codes.items()),
        ]

    def compile(self, units, into, include_dirs):
        """The objects of some units, in a folder; a unit on each core."""
        into.mkdir(parents=True, exist_ok=True)
        command = [*self.command, *(f"-I{folder}" for folder in include_dirs), "-x", "cu", "-c"]

        def compile_one(unit):
            made = into / f"{unit.stem}.o"
            done = subprocess.run([*command, str(unit), "-o", str(made)], capture_output=True, text=True)
            print(done.stdout, done.stderr, sep="", end="", file=sys.stderr)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
                raise CompileError(errors[0] if errors else f"nvcc fails with {unit}")
            return str(made)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compile_one, units))


def toolkit():
    """That of the nvcc which is found; None, and a line about it, without one."""
    if not CUDA_WANTED:
        return None
    if nvcc := find_nvcc():
        return Toolkit(nvcc)
    if CUDA_REQUIRED:
        raise CompileError("TILEGRAD_CUDA=1 needs nvcc, in CUDA_HOME, on the PATH or as a wheel, and there is none")
    say_left_out("nvcc is not found")
    return None


def say_left_out(why):
    print(f"tilegrad: the CUDA C++ kernels are left out ({why}), and the Triton kernels serve", file=sys.stderr)


# --- the build --------------------------------------------------------------------------------------------------------


class BuildUnits(build_ext):
    """Compiles each unit with flags and a compiler of its own, which setuptools has only for whole extensions."""

    def build_extension(self, ext):
        try:
            if cuda := toolkit():  # first: without it the rest is compiled differently
                self.add_cuda(ext, cuda)
        except CompileError as error:
            if CUDA_REQUIRED:
                raise
            say_left_out(error)

        compile_one = self.compiler._compile

        def with_flags(obj, src, extension, cc_args, extra, pp_opts):
            return compile_one(obj, src, extension, cc_args, [*extra, *UNITS.get(Path(src).name, [])], pp_opts)

        self.compiler._compile = with_flags
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile = compile_one

    def add_cuda(self, ext, cuda):
        objects = cuda.compile(CUDA_UNITS, Path(self.build_temp, "cuda"), [*ext.include_dirs, *self.include_dirs])
        ext.extra_objects = [*objects, cuda.runtime]
        ext.libraries = ["rt"]
        ext.define_macros = [("TILEGRAD_CUDA", ", ".join(f'"{name}"' for name in cuda.architectures))]
        ext.include_dirs = [*ext.include_dirs, cuda.include]


def extension():
    import numpy
    import pybind11
    from pybind11.setup_helpers import ParallelCompile

    ParallelCompile().install()  # a unit on each core

    return Extension(
        "tilegrad._C",
        [
            *map(str, sorted(Path("csrc").glob("*.cpp"))),
            CPU + "pool.cpp",
            CPU + "dispatch.cpp",
            *(CPU + u for u in UNITS),
            *map(str, CUBLASLT),
        ],
        depends=sorted(str(path) for path in Path("csrc").rglob("*") if path.is_file()),  # which the sdist takes along
        include_dirs=[pybind11.get_include(), numpy.get_include(), "csrc"],
        language="c++",
        extra_compile_args=[
            *("-std=c++17", *OPTIMIZED, *SANITIZED, "-fvisibility=hidden", "-pthread", *BASELINE),
            *("-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi"),
        ],
        extra_link_args=["-pthread", "-ldl", *SANITIZED],
        optional=not SANITIZED and not CUDA_REQUIRED,
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildUnits})
