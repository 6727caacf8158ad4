"""The C++ extension; everything else is declared in pyproject.toml.

Where it does not compile, the installation goes on without it: ``tilegrad info`` says so, and the reference runs.

``TILEGRAD_SANITIZE=address,undefined`` or ``thread`` builds it for these sanitizers of the compiler (`make sanitize`).
"""

import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

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

OPTIMIZED = ["-O3", "-g0"]
SANITIZED = []
if sanitizer := os.environ.get("TILEGRAD_SANITIZE"):
    OPTIMIZED = ["-O1", "-g1", "-fno-omit-frame-pointer"]  # what is sanitized takes minutes to compile with more
    SANITIZED = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]


class BuildUnits(build_ext):
    """Compiles each unit with flags of its own, which setuptools has only for whole extensions."""

    def build_extension(self, ext):
        compile_one = self.compiler._compile

        def with_flags(obj, src, extension, cc_args, extra, pp_opts):
            return compile_one(obj, src, extension, cc_args, [*extra, *UNITS.get(Path(src).name, [])], pp_opts)

        self.compiler._compile = with_flags
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile = compile_one


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
        ],
        depends=sorted(map(str, Path("csrc").rglob("*.h"))),
        include_dirs=[pybind11.get_include(), numpy.get_include(), "csrc"],
        language="c++",
        extra_compile_args=[
            *("-std=c++17", *OPTIMIZED, *SANITIZED, "-fvisibility=hidden", "-pthread", *BASELINE),
            *("-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi"),
        ],
        extra_link_args=["-pthread", *SANITIZED],
        optional=not SANITIZED,
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildUnits})
