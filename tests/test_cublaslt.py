"""cuBLASLt behind tilegrad._C: every epilogue against NumPy, what is refused, which kernel is chosen, what errors say.

The library is a stand-in that computes on the CPU (standin/libcublasLt.c), in a process of its own.
tests/test_cublaslt_library.py has NVIDIA's own.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cublaslt_cases import Case, Host, Matrix, Product, cases
from standin import cublaslt, driver
from standin.cublaslt import last_words
from standin.process import in_its_own_process

from tilegrad import _C


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cublaslt.build(tmp_path_factory.mktemp("standin"))


# --- products ---------------------------------------------------------------------------------------------------------


def load_standin() -> ctypes.CDLL:
    version, path = _C.cublaslt_load([])
    assert version == 130002
    return ctypes.CDLL(path)


@in_its_own_process
def test_every_epilogue_is_what_numpy_says():
    library = load_standin()
    for case in cases():
        product = Product(case, Host)
        product.run()
        product.check()
    assert library.standin_alive() == 0  # descriptors


@in_its_own_process
def test_matrices_may_begin_anywhere():
    """The stand-in refuses kernels that want more alignment than there is, which the heuristics have to be told."""
    load_standin()
    for off in (4, 8, 16, 32):
        for which in range(4):
            begins = itertools.count()
            product = Product(Case(beta=1.0), lambda content: Host(content, off * (next(begins) == which)))
            product.run()
            product.check()


@in_its_own_process
def test_c_may_be_d():
    load_standin()
    product = Product(Case(beta=1.0), Host)
    _C.cublaslt_matmul(**product.arguments(d=(product.added.pointer, product.added.ld)))
    np.testing.assert_allclose(product.added.values(), product.a @ product.b + product.c, rtol=1e-6)


@in_its_own_process
def test_c_is_not_read_without_beta():
    load_standin()
    product = Product(Case(), Host)
    _C.cublaslt_matmul(**product.arguments(c=(0, 0)))
    product.check()


@in_its_own_process
def test_a_linear_layer_and_its_gradients():
    """The three products of a layer as the engine calls them, against the chain rule written out."""
    load_standin()
    rng = np.random.default_rng(1)
    rows, inputs, outputs = 6, 16, 8
    shapes = {"x": (rows, inputs), "weight": (outputs, inputs), "bias": (1, outputs), "dy": (rows, outputs)}
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    held = {name: Matrix(Host, value, "float64") for name, value in values.items()}
    x, weight, bias, dy = ((matrix.pointer, matrix.ld) for matrix in held.values())
    y, dx, dw = (Matrix(Host, np.zeros(shapes[like]), "float64") for like in ("dy", "x", "weight"))

    def product(shape: tuple[int, int, int], a: Any, b: Any, into: Matrix, **epilogue: Any) -> None:
        _C.cublaslt_matmul(shape, "float64", a, b, (into.pointer, into.ld), **epilogue)

    product((rows, outputs, inputs), (*x, False), (*weight, True), y, epilogue="bias", bias=bias[0])
    product((rows, inputs, outputs), (*dy, False), (*weight, False), dx)
    product((outputs, inputs, rows), (*dy, True), (*x, False), dw)
    np.testing.assert_allclose(y.values(), values["x"] @ values["weight"].T + values["bias"])
    np.testing.assert_allclose(dx.values(), values["dy"] @ values["weight"])
    np.testing.assert_allclose(dw.values(), values["dy"].T @ values["x"])


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "not all from 1": {"shape": (24, 0, 32)},
    "2147483647": {"shape": (24, 40, 2**31)},
    "A has 32 columns and a leading dimension of 31": {"a": (4096, 31, False)},
    "A has 24 columns": {"a": (4096, 23, True)},
    "B has 40 columns": {"b": (4096, 39, False)},
    "B has 32 columns": {"b": (4096, 31, True)},
    "A is a null pointer": {"a": (0, 32, False)},
    "B is not aligned to its elements of 4 bytes": {"b": (4098, 40, False)},
    "C is a null pointer": {"c": (0, 40), "beta": 1.0},
    "C is D, and has another leading dimension": {"c": (4096, 48), "d": (4096, 40), "beta": 1.0},
    "D has 40 columns": {"d": (4096, 39)},
    "bias is a null pointer": {"epilogue": "bias", "bias": 0},
    "bias is not aligned": {"epilogue": "bgrad_b", "bias": 4098},
    "a multiple of 8": {"epilogue": "gelu_aux", "aux": (4096, 41)},
    "a multiple of 8 that is no less": {"epilogue": "dgelu", "aux": (4096, 32)},
    "a multiple of 128": {"epilogue": "relu_aux", "aux": (4096, 40)},
    "aux is not a pointer aligned to 16 bytes": {"epilogue": "drelu_bgrad", "aux": (4104, 128), "bias": 4096},
    "workspace is not a pointer aligned to 256 bytes": {"workspace": (4096 + 128, 1 << 20)},
    "a product of float32 cannot be stored as float16": {"out_dtype": "float16"},
    "a product of float64 cannot be stored as float32": {"dtype": "float64", "out_dtype": "float32"},
    "TF32 is for float32, and this is bfloat16": {"dtype": "bfloat16", "out_dtype": "bfloat16", "tf32": True},
    "epilogue dgelu does not exist for float64": {"dtype": "float64", "out_dtype": "float64", "epilogue": "dgelu"},
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_taken_is_known_without_the_library(why: str):
    plain: dict[str, Any] = {
        "shape": (24, 40, 32), "dtype": "float32", "a": (4096, 32, False), "b": (8192, 40, False), "d": (16384, 40)
    }  # fmt: skip
    assert _C.cublaslt_takes(**plain) is True
    call = plain | REFUSED[why]
    assert _C.cublaslt_takes(**call) is False
    for function in (_C.cublaslt_matmul, _C.cublaslt_tune):
        with pytest.raises(ValueError, match=f"cuBLASLt cannot take this: .*{re.escape(why)}"):
            function(**call, scratch=4096)


def test_names_that_do_not_exist():
    operands = [(4096, 32, False), (8192, 40, False), (16384, 40)]
    with pytest.raises(ValueError, match="float16, bfloat16, float32 and float64, not int8"):
        _C.cublaslt_takes((24, 40, 32), "int8", *operands)
    with pytest.raises(ValueError, match="no epilogue swish"):
        _C.cublaslt_takes((24, 40, 32), "float32", *operands, epilogue="swish")


# --- which kernel -----------------------------------------------------------------------------------------------------


@in_its_own_process
def test_heuristics_are_asked_once_for_a_kind_of_call():
    library = load_standin()

    plain = Case()

    def asks(case: Case = plain, **others: Any) -> int:
        before = library.standin_heuristics()
        product = Product(case, Host)
        _C.cublaslt_matmul(**product.arguments(**others))
        return library.standin_heuristics() - before

    assert asks() == 1
    assert asks() == 0  # other pointers with the same alignment
    for case in (
        Case(shape=(24, 40, 33)), Case(transposed=(True, False)), Case("bias"), Case(dtype="bfloat16"), Case(tf32=True),
        Case(beta=1.0), Case(padding=8),
    ):  # fmt: skip
        assert asks(case) == 1, case
        assert asks(case) == 0, case
    assert asks(workspace=(1 << 20, 1 << 20)) == 1
    assert asks(device=1) == 1
    for transposed in itertools.product((False, True), repeat=2):
        assert asks(Case(transposed=transposed, shape=(32, 32, 32))) == 1
    room = Host(np.zeros(1 << 14, np.uint8))
    for offset in (4, 8, 16):
        assert asks(d=(room.pointer + offset, 40)) == 1
        assert asks(d=(room.pointer + offset + 256, 40)) == 0


@in_its_own_process
def test_tuning_keeps_the_fastest_that_runs():
    """Of the stand-in's four, one takes 3 ms, one half and cannot be launched, one is not for this, one takes 2 ms and
    wants a megabyte of workspace."""
    library = load_standin()
    workspace = Host(np.zeros(1 << 20, np.uint8))
    product = Product(Case("gelu_aux_bias", beta=1.0), Host, workspace=(workspace.pointer, 1 << 20))
    scratch = Product(product.case, Host).d
    into_itself = product.arguments(c=(product.d.pointer, product.d.ld))
    _C.cublaslt_matmul(**into_itself)
    assert library.standin_last() == 0  # untimed, the first
    before = product.d.values()
    assert _C.cublaslt_tune(**into_itself, scratch=scratch.pointer) == 2000.0
    assert (product.d.values() == before).all()
    assert (scratch.values() != 0).any()
    asked = library.standin_heuristics()
    assert _C.cublaslt_tune(**into_itself, scratch=scratch.pointer) == 2000.0
    _C.cublaslt_matmul(**into_itself)
    assert library.standin_last() == 3
    assert library.standin_heuristics() == asked
    assert _C.cublaslt_tune(**product.arguments(workspace=(0, 0)), scratch=scratch.pointer) == 3000.0
    _C.cublaslt_matmul(**product.arguments(workspace=(0, 0)))
    assert library.standin_last() == 0
    assert library.standin_alive() == 0
    with pytest.raises(ValueError, match="aligned as D is"):
        _C.cublaslt_tune(**product.arguments(), scratch=scratch.pointer + 4)
    with pytest.raises(ValueError, match="scratch"):
        _C.cublaslt_tune(**product.arguments())


@in_its_own_process
def test_nothing_is_timed_while_its_stream_is_captured(monkeypatch: pytest.MonkeyPatch):
    load_standin()
    product = Product(Case(), Host)
    monkeypatch.setenv("STANDIN_CAPTURE", "1")
    with pytest.raises(RuntimeError, match="cannot be timed while their stream is captured"):
        _C.cublaslt_tune(**product.arguments(), scratch=product.added.pointer)
    _C.cublaslt_matmul(**product.arguments())  # which may be captured
    product.check()


@in_its_own_process
def test_devices_and_threads():
    """Each device has a handle of its own, and a thread's current device is what it was."""
    load_standin()
    driver.library()
    for current, device in itertools.product((0, 1), repeat=2):
        driver.set_device(current)
        product = Product(Case("relu_aux_bias"), Host, device=device)
        product.run()
        product.check()
        assert driver.current_device() == current
    failed: list[BaseException] = []

    def work(device: int) -> None:
        try:
            for case in cases():
                product = Product(case, Host, device=device)
                product.run()
                product.check()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize(("capability", "mebibytes"), [("8.0", 4), ("9.0", 32), ("10.0", 32)])
@in_its_own_process
def test_the_workspace_that_is_recommended(capability: str, mebibytes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STANDIN_CAPABILITY", capability)
    load_standin()
    assert _C.cublaslt_workspace_bytes(0) == mebibytes << 20


# --- what is not there, and what fails --------------------------------------------------------------------------------


MULTIPLY = "_C.cublaslt_matmul((8, 8, 8), 'float32', (4096, 8, False), (8192, 8, False), (16384, 8), device={device})"
LOAD_AND_MULTIPLY = "_C.cublaslt_load([])\n" + MULTIPLY.format(device=0)


def test_the_library_is_looked_for_in_order(standin: Path, tmp_path: Path):
    """A file that the user names, what is loaded already, the loader's path, wheels."""
    own = standin.with_name("libcublasLt.so.13")
    named, wheel = (tmp_path / name / own.name for name in ("named", "wheel"))
    for copy in (named, wheel):
        copy.parent.mkdir()
        shutil.copy(own, copy)
    older = cublaslt.compiled("libcublasLt.c", tmp_path / "libcublasLt.so.12")
    load = f"print(*_C.cublaslt_load(['/nowhere/libcublasLt.so.13', {str(wheel)!r}]))"
    loaded = f"import ctypes; ctypes.CDLL({str(older)!r}); "
    paths = {"LD_LIBRARY_PATH": str(standin.parent)}
    assert last_words(loaded + load, TILEGRAD_CUBLASLT=str(named), **paths) == f"130002 {named}"
    assert last_words(loaded + load, **paths) == f"130002 {older}"
    assert last_words(load, **paths) == f"130002 {own}"
    assert last_words(load) == f"130002 {wheel}"


def test_no_library(tmp_path: Path):
    said = last_words("_C.cublaslt_load(['/nowhere/libcublasLt.so.12'])")
    assert said.startswith("RuntimeError: libcublasLt.so.13 or .12 is needed, and neither this process has one")
    assert "any of 1 files of wheels" in said
    assert "nvidia-cublas" in said
    said = last_words("_C.cublaslt_load([])", TILEGRAD_CUBLASLT="/nowhere/libcublasLt.so")
    assert "TILEGRAD_CUBLASLT names a cuBLASLt that cannot be loaded: /nowhere/libcublasLt.so" in said
    assert last_words(MULTIPLY.format(device=0)) == "RuntimeError: cuBLASLt is used before it is loaded"
    (tmp_path / "some.c").write_text("long cublasLtGetVersion(void) { return 130002; }")
    some = tmp_path / "libsome.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(some), str(tmp_path / "some.c")], check=True)
    said = last_words("_C.cublaslt_load([])", TILEGRAD_CUBLASLT=str(some))
    assert said == f"RuntimeError: {some} has no cublasLtGetCudartVersion, which is needed of it"


def test_a_library_that_is_too_old(standin: Path):
    own = str(standin.with_name("libcublasLt.so.13"))
    said = last_words("_C.cublaslt_load([])", TILEGRAD_CUBLASLT=own, STANDIN_CUBLASLT="old")
    assert said == f"RuntimeError: cuBLASLt 12.1.0 or newer is needed, and {own} is 12.0.3"


WHAT = "(8, 8)·(8, 8) of float32 with epilogue none"
FAILURES = {
    "STANDIN_DRIVER=12080": (
        "RuntimeError: cuBLASLt 13.0.2 needs a driver for CUDA 13, and the one here is for CUDA 12.8"
    ),
    "STANDIN_CUBLASLT=refuses": f"NotImplementedError: cuBLASLt has no kernel for {WHAT}",
    "STANDIN_CUBLASLT=fails": f"RuntimeError: cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED for {WHAT}",
}


@pytest.mark.parametrize("variable", FAILURES)
def test_what_fails_says_what_it_was(standin: Path, variable: str):
    name, value = variable.split("=")
    variables = {name: value, "LD_LIBRARY_PATH": str(standin.parent)}
    assert last_words(LOAD_AND_MULTIPLY, **variables) == FAILURES[variable]


def test_tuning_where_nothing_runs(standin: Path):
    tune = LOAD_AND_MULTIPLY.replace("matmul", "tune").replace("device=0", "scratch=32768")
    said = last_words(tune, LD_LIBRARY_PATH=str(standin.parent), STANDIN_CUBLASLT="fails")
    assert said.startswith("RuntimeError: cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED")


def test_no_device_and_no_driver(standin: Path):
    load = "_C.cublaslt_load([])\n"
    said = last_words(load + MULTIPLY.format(device=7), LD_LIBRARY_PATH=str(standin.parent))
    assert said == "RuntimeError: cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"
    # A driver that may be here is hidden by one that is none.
    library = {"TILEGRAD_CUBLASLT": str(standin.with_name("libcublasLt.so.13"))}
    empty = standin.parent / "empty"
    cublaslt.compiled("cublaslt_without_gpu.c", empty / "libcuda.so.1")
    said = last_words(load + MULTIPLY.format(device=0), LD_LIBRARY_PATH=str(empty), **library)
    assert said == "RuntimeError: libcuda.so.1 has no cuInit, which is needed of it"
