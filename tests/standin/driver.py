"""The stand-in driver library from Python: building it, its record of calls, and what a CUDA runtime does on top of it.

A process that uses it is started with ``environment(...)``, so that whoever looks for libcuda.so.1 finds the stand-in.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


def build(folder: Path) -> Path:
    """The library, compiled into ``folder`` against the header that Triton ships."""
    triton = importlib.util.find_spec("triton")
    assert triton is not None
    assert triton.origin is not None
    include = Path(triton.origin).parent / "backends/nvidia/include"
    made = folder / "libcuda.so.1"
    options = ["-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-shared", "-fPIC", f"-I{include}"]
    command = [os.environ.get("CC", "cc"), *options, f"-Wl,-soname,{made.name}", "-o", str(made), "libcuda.c"]
    subprocess.run(command, cwd=HERE, check=True)
    return made


def environment(folder: Path, calls: Path) -> dict[str, str]:
    """That of a process which finds the library in ``folder`` and writes its calls to a file. Triton's cache is beside
    the library: what one process compiles, the next one loads."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "TILEGRAD_"))}
    libraries = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    return mine | {
        "LD_LIBRARY_PATH": libraries,
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "cache"),
        "TILEGRAD_CUBLASLT": str(folder / "libcublasLt.so.13"),  # a stand-in, or none: never NVIDIA's own
        "STANDIN_CALLS": str(calls),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # none is needed, and their import takes longer than a test
    }


# --- inside such a process --------------------------------------------------------------------------------------------


@functools.cache
def library() -> ctypes.CDLL:
    lib = ctypes.CDLL("libcuda.so.1")
    assert lib.cuInit(0) == 0
    return lib


def _ok(result: int) -> None:
    assert result == 0, f"the stand-in driver said {result}"


def current_device() -> int:
    """As cudaGetDevice: that of the current context, and 0 where a thread has none yet."""
    device = ctypes.c_int()
    return device.value if library().cuCtxGetDevice(ctypes.byref(device)) == 0 else 0


def set_device(index: int) -> None:
    """As cudaSetDevice: makes the primary context of the device current."""
    context = ctypes.c_void_p()
    _ok(library().cuDevicePrimaryCtxRetain(ctypes.byref(context), index))
    _ok(library().cuCtxSetCurrent(context))


def capability(index: int) -> tuple[int, int]:
    """The compute capability of a device."""
    found = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        value = ctypes.c_int()
        _ok(library().cuDeviceGetAttribute(ctypes.byref(value), attribute, index))
        found.append(value.value)
    return found[0], found[1]


def create_stream(index: int) -> int:
    """A stream of a device: its handle."""
    before = current_device()
    set_device(index)
    stream = ctypes.c_void_p()
    _ok(library().cuStreamCreate(ctypes.byref(stream), 1))
    set_device(before)
    assert stream.value is not None
    return stream.value


def allocate(count: int) -> int:
    """Memory of the current device: its address."""
    set_device(current_device())  # a runtime makes the context at the first call that needs one
    address = ctypes.c_uint64()
    _ok(library().cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(count)))
    return address.value


def adopt(address: int, count: int, index: int) -> None:
    """Let memory of the CPU count as memory of a device."""
    _ok(library().standin_adopt(ctypes.c_uint64(address), ctypes.c_size_t(count), index))


def note(what: str) -> None:
    """Put something that an array library does on the GPU by itself into the record."""
    _ok(library().standin_note(what.encode()))


# --- the record -------------------------------------------------------------------------------------------------------

_read = [0]  # how much of it has been handed out


def calls() -> list[dict[str, Any]]:
    """What was called since the last look: the function's name, its result, and what it was about."""
    with open(os.environ["STANDIN_CALLS"], "rb") as record:
        record.seek(_read[0])
        lines = record.read()
    _read[0] += len(lines)
    return [json.loads(line) for line in lines.splitlines()]


class Launch(NamedTuple):
    kernel: str
    function: int  # the loaded kernel: the same number, the same compiled code
    grid: tuple[int, ...]
    threads: int
    shared: int
    stream: int
    device: int
    arguments: tuple[bytes, ...]

    def integer(self, i: int) -> int:
        return int.from_bytes(self.arguments[i], "little", signed=False)


def launches(record: list[dict[str, Any]] | None = None) -> list[Launch]:
    """The launches of a record (default: since the last look), all of which the driver took."""
    found = []
    for call in calls() if record is None else record:
        if call["call"] != "cuLaunchKernelEx":
            continue
        assert call["result"] == 0, call
        found.append(
            Launch(
                call["kernel"], call["function"], tuple(call["grid"]), call["block"][0], call["shared"], call["stream"],
                call["device"], tuple(map(bytes.fromhex, call["arguments"])),
            )
        )  # fmt: skip
    return found


def map_of(launch: Launch, i: int, record: list[dict[str, Any]]) -> dict[str, Any]:
    """The encoding of the tensor map that a kernel was given as its argument ``i``."""
    serial = int.from_bytes(launch.arguments[i][64:72], "little")
    (found,) = [c for c in record if c["call"] == "cuTensorMapEncodeTiled" and c.get("map") == serial]
    return found


def addresses(record: list[dict[str, Any]]) -> set[int]:
    """What the launches of a record were given that could be an address."""
    found = set()
    for launch in launches(record):
        for i, argument in enumerate(launch.arguments):
            if len(argument) == 128:
                found.add(map_of(launch, i, record)["address"])
            elif len(argument) == 8:
                found.add(launch.integer(i))
    return found
