"""linear on cuBLASLt: which calls go there, which go elsewhere, and that both are right.

The library is a stand-in that computes on the CPU and counts (standin/libcublasLt.c), in a process of its own, where
CuPy's arrays are those of a double. Backend "cuda" is its kernels, emulated. The tests marked gpu have NVIDIA's own.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cublaslt_cases import ROUNDING, TYPES, Host, eighths, gelu_tanh, gelu_tanh_slope
from standin import cublaslt as standin_library
from standin import driver
from standin.process import in_its_own_process

import tilegrad as tg
from tilegrad import _C, backends, cublaslt, cuda_kernels

pytest.importorskip("cupy")


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standin_library.build(tmp_path_factory.mktemp("standin"))


# --- cases ------------------------------------------------------------------------------------------------------------

NUMBERS = {1: "none", 2: "relu", 4: "bias", 6: "relu_bias", 32: "gelu", 36: "gelu_bias", 160: "gelu_aux"}
NUMBERS |= {164: "gelu_aux_bias", 512: "bgrad_a"}  # of cublasLtEpilogue_t; our A is its B

ACTIVATED = {
    None: (lambda z: z, np.ones_like),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "gelu_tanh": (gelu_tanh, gelu_tanh_slope),
    "silu": (lambda z: z / (1 + np.exp(-z)), None),
}


class Case(NamedTuple):
    """Arrays of one linear, drawn so that products and their sums are exact in every dtype."""

    dtype: str = "float32"
    activation: str | None = None
    bias: bool = True
    save: bool = False
    shape: tuple[int, ...] = (6, 16)  # of x
    outputs: int = 8
    layout: str = "plain"


def x_laid_out(library: Any, x: np.ndarray, layout: str) -> Any:
    """``x`` on the device, where ``layout`` is how; of some, rows or columns are one and the same."""
    put = library.array
    if layout == "padded":
        return put(np.concatenate([x, x], -1))[..., : x.shape[-1]]
    if layout == "turned":
        return put(np.ascontiguousarray(np.moveaxis(x, -1, 0))).transpose(*range(1, x.ndim), 0)
    if layout == "every other column":
        return put(np.repeat(x, 2, -1))[..., ::2]
    if layout == "swapped":  # (a, b, K) of (b, a, K): no strides reach its rows
        return put(np.ascontiguousarray(x.swapaxes(0, 1))).transpose(1, 0, 2)
    if layout == "one row":
        return library.broadcast_to(put(x[:1]), x.shape)
    return put(x)


class Arrays:
    def __init__(self, library: Any, case: Case) -> None:
        rng = np.random.default_rng(0)
        self.library = library
        self.case, dtype = case, TYPES[case.dtype]
        x, weight = eighths(rng, *case.shape), eighths(rng, case.outputs, case.shape[-1])
        bias, grad = eighths(rng, case.outputs), eighths(rng, *case.shape[:-1], case.outputs)
        if case.layout == "one row":
            x = np.broadcast_to(x[:1], x.shape)
        self.values = x, weight, bias, grad
        self.x = x_laid_out(library, x.astype(dtype), case.layout)
        if case.layout == "weight turned":
            self.weight = library.array(np.ascontiguousarray(weight.T).astype(dtype)).T
        else:
            self.weight = library.array(weight.astype(dtype))
        self.grad = x_laid_out(library, grad.astype(dtype), "swapped" if case.layout == "swapped" else "plain")
        self.bias = library.array(bias.astype(dtype)) if case.bias else None
        if case.layout == "every other bias":
            self.bias = library.array(np.repeat(bias.astype(dtype), 2))[::2]

    def forward(self) -> Any:
        """Output, and what is saved."""
        return backends.linear(self.x, self.weight, self.bias, self.case.activation, self.case.save)

    def check_forward(self, made: Any, rounding: float = 1.0) -> None:
        x, weight, bias, _ = self.values
        z = x @ weight.T + (bias if self.case.bias else 0)
        out, saved = made
        self.close(out, ACTIVATED[self.case.activation][0](z), rounding)
        if self.case.activation == "gelu_tanh" and self.case.save:
            self.close(saved, z)

    def backward(self, needs: tuple[bool, bool, bool] = (True, True, True)) -> Any:
        z, saved = self.values[0] @ self.values[1].T, None
        if self.case.activation is not None:
            kept = np.maximum(z, 0) if self.case.activation == "relu" else z
            saved = self.library.array(kept.astype(TYPES[self.case.dtype]))
        return backends.linear_backward(self.grad, self.x, self.weight, saved, self.case.activation, needs)

    def check_backward(self, made: Any, needs: tuple[bool, bool, bool] = (True, True, True)) -> None:
        x, weight, _, grad = self.values
        z = (x @ weight.T).astype(TYPES[self.case.dtype]).astype(np.float64)
        dz = grad * ACTIVATED[self.case.activation][1](z)
        if self.case.activation == "gelu_tanh":
            dz = dz.astype(TYPES[self.case.dtype]).astype(np.float64)  # as it is held between the kernels
        rows = dz.reshape(-1, dz.shape[-1])
        truths = dz @ weight, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(0)
        for got, truth, needed in zip(made, truths, needs, strict=True):
            assert (got is not None) == needed
            if needed:
                self.close(got, truth, 4 if self.case.activation == "gelu_tanh" else 1)

    def close(self, got: Any, truth: np.ndarray, factor: float = 1.0) -> None:
        assert got.shape == truth.shape
        got = got.get().astype(np.float64)
        bound = factor * ROUNDING[self.case.dtype] * (np.abs(truth) + (factor > 1) * np.abs(truth).max(initial=0))
        worst = np.max(np.abs(got - truth) - bound - 2**-24, initial=0)
        assert worst <= 0, f"{self.case}: {worst} beyond the bound"


class Launched(ctypes.Structure):
    """A product, as the stand-in was asked for it."""

    _fields_ = [
        ("epilogue", ctypes.c_uint32),
        ("tf32", ctypes.c_int),
        ("device", ctypes.c_int),
        ("stream", ctypes.c_size_t),
    ]


class Count:
    """Of the stand-in's products."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_C.cublaslt_load([])[1])
        self._library.standin_product.restype = Launched
        self._seen = 0

    def products(self) -> list[Launched]:
        """Since the last look."""
        before, self._seen = self._seen, self._library.standin_products()
        return [self._library.standin_product(i) for i in range(before, self._seen)]

    def new(self) -> list[str]:
        """The epilogues of the products since the last look."""
        return [NUMBERS[product.epilogue] for product in self.products()]

    def last(self) -> int:
        return self._library.standin_last()


def cupy_double() -> Any:
    from standin.cupy_arrays import Tensors

    streams = Tensors().streams
    library = sys.modules["cupy"]
    library.streams = streams
    return library


def emulate(capability: int = 80) -> None:
    """From now on the kernels of backend "cuda" run, and read what the stand-in wrote, too."""
    from emulated import Schedule, extension

    cuda_kernels._C = extension()
    Schedule(1, "random", capability).begin()


def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose launches a stand-in driver does not run."""
    monkeypatch.setattr(backends, "_why_not_triton", lambda: "not here")


def epilogue_of(case: Case) -> list[str]:
    act = {None: "", "relu": "relu", "gelu_tanh": "gelu"}[case.activation]
    aux = "aux" if case.save and case.activation == "gelu_tanh" else ""
    return ["_".join(filter(None, (act, aux, "bias" if case.bias else ""))) or "none"]


def taken() -> list[Case]:
    """Forwards that go to cuBLASLt, whatever asks."""
    made = []
    for dtype, activation, bias, save in itertools.product(TYPES, (None, "relu", "gelu_tanh"), (0, 1), (0, 1)):
        if activation != "gelu_tanh" or dtype in ("float16", "bfloat16"):
            made.append(Case(dtype, activation, bool(bias), bool(save)))
    for layout in ("padded", "turned", "weight turned"):
        made.append(Case(layout=layout))
    for shape, outputs in itertools.product([(1, 1), (5, 7), (1, 3), (16,), (2, 3, 4)], (1, 19)):
        made.append(Case(shape=shape, outputs=outputs))
    return made


ELSEWHERE = [
    Case(layout="every other column"),
    Case(layout="one row"),
    Case(layout="every other bias"),
    Case(shape=(0, 16)),
    Case(activation="silu"),
    Case("float32", "gelu_tanh"),  # whose tanh may be good for 16 bits only
    Case("float64", "gelu_tanh"),
    Case("bfloat16", "gelu_tanh", save=True, outputs=5),  # an auxiliary matrix has rows of 8 elements each
]


# --- backend "cuda" ---------------------------------------------------------------------------------------------------


@in_its_own_process
def test_forward_of_backend_cuda():
    library, count = cupy_double(), Count()
    emulate()
    with tg.backend("cuda"):
        for case in taken():
            arrays = Arrays(library, case)
            arrays.check_forward(arrays.forward())
            assert count.new() == epilogue_of(case), case
        for case in ELSEWHERE:
            arrays = Arrays(library, case)
            arrays.check_forward(arrays.forward(), rounding=4)
            assert count.new() == [], case
        copied = Arrays(library, Case(shape=(2, 3, 16), layout="swapped"))  # by a kernel of ours, and goes there then
        copied.check_forward(copied.forward())
        assert count.new() == ["bias"]


@in_its_own_process
def test_backward_of_backend_cuda():
    library, count = cupy_double(), Count()
    emulate()
    with tg.backend("cuda"):
        for dtype, activation in itertools.product(TYPES, (None, "relu", "gelu_tanh")):
            for needs in itertools.product((False, True), repeat=3):
                arrays = Arrays(library, Case(dtype, activation))
                arrays.check_backward(arrays.backward(needs), needs)
                fused = activation is None and needs[1] and needs[2] and dtype != "float64"
                weight = (["bgrad_a"] if fused else ["none"]) * needs[1]
                assert sorted(count.new()) == sorted(["none"] * needs[0] + weight), (dtype, activation, needs)
        for layout, epilogues in [
            ("padded", ["bgrad_a", "none"]),
            ("turned", ["bgrad_a", "none"]),
            ("weight turned", ["bgrad_a", "none"]),
            ("every other column", ["none"]),
            ("one row", ["none"]),
        ]:
            arrays = Arrays(library, Case(layout=layout))
            arrays.check_backward(arrays.backward())
            assert count.new() == epilogues, layout
        copied = Arrays(library, Case(shape=(2, 3, 16), layout="swapped"))
        copied.check_backward(copied.backward())
        assert count.new() == ["bgrad_a", "none"]
        empty = Arrays(library, Case(shape=(0, 16)))
        empty.check_backward(empty.backward())
        assert count.new() == []


@in_its_own_process
def test_hoppers_own_kernel_comes_first():
    library, count = cupy_double(), Count()
    emulate(90)
    with tg.backend("cuda"):
        for case, epilogues in [
            (Case("bfloat16", "gelu_tanh", save=True), []),
            (Case("float16", "relu", shape=(6, 8)), []),
            (Case("bfloat16", "gelu_tanh", shape=(6, 7)), ["gelu_bias"]),  # rows that no tensor map can describe
            (Case("float32", "relu"), ["relu_bias"]),
        ]:
            arrays = Arrays(library, case)
            arrays.check_forward(arrays.forward())
            assert count.new() == epilogues, case
        arrays = Arrays(library, Case("bfloat16", shape=(8, 16)))
        arrays.check_backward(arrays.backward())
        assert count.new() == []


# --- left to us -------------------------------------------------------------------------------------------------------


@in_its_own_process
def test_forward_that_is_left_to_us(monkeypatch: pytest.MonkeyPatch):
    library, count = cupy_double(), Count()
    without_triton(monkeypatch)
    assert cuda_kernels.why_not() is not None  # nor are there kernels of ours
    for case in taken():
        arrays = Arrays(library, case)
        arrays.check_forward(arrays.forward())
        assert count.new() == epilogue_of(case), case
    for case in [*ELSEWHERE, Case(shape=(2, 3, 16), layout="swapped")]:
        arrays = Arrays(library, case)
        arrays.check_forward(arrays.forward())
        assert count.new() == [], case


@in_its_own_process
def test_backward_that_is_left_to_us(monkeypatch: pytest.MonkeyPatch):
    library, count = cupy_double(), Count()
    without_triton(monkeypatch)
    for dtype, needs in itertools.product(TYPES, itertools.product((False, True), repeat=3)):
        arrays = Arrays(library, Case(dtype))
        arrays.check_backward(arrays.backward(needs), needs)
        epilogues = ["none"] * needs[0] + ["bgrad_a" if needs[2] else "none"] * needs[1]
        alone = needs[2] and (not needs[1] or dtype == "float64")  # a bias's gradient with no product to go with
        assert count.new() == ([] if alone else epilogues), (dtype, needs)
    for case in [Case(layout="one row"), Case(layout="every other column"), Case(activation="relu")]:
        arrays = Arrays(library, case)
        arrays.check_backward(arrays.backward())
        assert count.new() == [], case
    emulate()  # now there are kernels for the derivative
    for dtype, activation in itertools.product(TYPES, ("relu", "gelu_tanh")):
        arrays = Arrays(library, Case(dtype, activation))
        arrays.check_backward(arrays.backward())
        assert count.new() == ["none", "none"], (dtype, activation)


@in_its_own_process
def test_training_through_tensors(monkeypatch: pytest.MonkeyPatch):
    library, count = cupy_double(), Count()
    without_triton(monkeypatch)
    rng = np.random.default_rng(1)
    values = [eighths(rng, *shape).astype("float32") for shape in ((6, 16), (8, 16), (8,), (6, 8))]
    grads = []
    for device in ("cpu", "cuda"):
        x, weight, bias = (tg.tensor(v, device=device, requires_grad=True) for v in values[:3])
        out = tg.nn.functional.linear(x, weight, bias)
        out.backward(tg.tensor(values[3], device=device))
        grads.append([t.detach().cpu().numpy() for t in (out, x.grad, weight.grad, bias.grad)])
    assert count.new() == ["bias", "none", "bgrad_a"]
    for here, there in zip(*grads, strict=True):
        np.testing.assert_array_equal(here, there)
    assert library.cuda.Device().id == 0


@in_its_own_process
def test_what_is_asked_for_by_name_stays(monkeypatch: pytest.MonkeyPatch):
    library, count = cupy_double(), Count()
    arrays = Arrays(library, Case())
    with tg.backend("reference"):
        arrays.check_forward(arrays.forward())
        arrays.check_backward(arrays.backward())
    asked: list[str] = []
    with tg.backend("triton"):
        monkeypatch.setattr(backends, "_run_on_addresses", lambda module, *_: asked.append(module.__name__))
        arrays.forward()
    assert asked == ["tilegrad.kernels"]
    assert count.new() == []


@in_its_own_process
def test_no_array_of_the_cpu_comes_near(monkeypatch: pytest.MonkeyPatch):
    cupy_double()
    monkeypatch.setattr(backends, "_on_cublaslt", lambda *_: pytest.fail("asked about an array of the CPU"))
    arrays = np.ones((4, 8)), np.ones((3, 8))
    backends.linear(*arrays, None, None, False)
    monkeypatch.setattr(backends, "takes_plain_calls", lambda: False)  # as if there were no kernels for the CPU
    backends.linear(*arrays, None, None, False)


# --- how they get there -----------------------------------------------------------------------------------------------


@in_its_own_process
def test_device_stream_and_precision(monkeypatch: pytest.MonkeyPatch):
    library, count = cupy_double(), Count()
    without_triton(monkeypatch)
    stream = driver.create_stream(1)
    with library.cuda.Device(1):
        arrays, short = Arrays(library, Case()), Arrays(library, Case("bfloat16"))
    driver.calls()
    with library.streams.use(1, stream):
        arrays.check_forward(arrays.forward())
        arrays.check_backward(arrays.backward())
    tg.set_float32_matmul_precision("high")
    arrays.forward(), short.forward()
    asked = [(product.device, product.stream, product.tf32) for product in count.products()]
    assert asked == [(1, stream, 0)] * 3 + [(1, 0, 1), (1, 0, 0)]
    assert driver.current_device() == 0


@in_its_own_process
def test_nothing_moves_or_waits():
    library, count = cupy_double(), Count()
    arrays = Arrays(library, Case("bfloat16", "gelu_tanh", save=True))
    arrays.forward()  # the first finds the library
    plain = Arrays(library, Case())
    driver.calls()
    arrays.forward()
    plain.backward()
    called = {call["call"] for call in driver.calls()}
    assert not [name for name in called if re.search("Memcpy|Synchronize|Alloc|kernel", name)]
    assert len(count.new()) == 4


@in_its_own_process
def test_the_workspace_is_handed_over():
    """The stand-in's fastest kernel but those that fail wants a megabyte: with the workspace, tuning finds it, and the
    engine's calls, having the same, take it."""
    library, count = cupy_double(), Count()
    case = Case()
    arrays = Arrays(library, case)
    out = library.empty((6, 8), "float32")
    listed = cublaslt.linear_workspace(arrays.x, arrays.weight, arrays.bias, None, out=out, pre=None)
    ((name, (shape, dtype)),) = listed.items()
    room = {name: library.empty(shape, dtype)}
    address, size = cublaslt._room(room)
    assert address % 256 == 0
    assert size == _C.cublaslt_workspace_bytes(0)
    assert room[name].data.ptr <= address
    assert address + size <= room[name].data.ptr + room[name].nbytes
    call = cublaslt._forward(arrays.x, arrays.weight, arrays.bias, None, out, None, False)
    scratch = Host(np.zeros(4096, np.uint8))
    assert _C.cublaslt_tune(**call, workspace=(address, size), scratch=scratch.pointer) == 2000.0
    cublaslt.linear(arrays.x, arrays.weight, arrays.bias, None, out=out, pre=None, workspace=room)
    assert count.last() == 3
    arrays.check_forward((out, None))


# --- where it is not --------------------------------------------------------------------------------------------------


@in_its_own_process
def test_no_kernel_in_the_library(monkeypatch: pytest.MonkeyPatch):
    library, count = cupy_double(), Count()
    without_triton(monkeypatch)
    monkeypatch.setenv("STANDIN_CUBLASLT", "refuses")
    arrays = Arrays(library, Case())
    arrays.check_forward(arrays.forward())
    arrays.check_backward(arrays.backward())
    emulate()
    with tg.backend("cuda"):
        arrays.check_forward(arrays.forward())
        arrays.check_backward(arrays.backward())
    assert count.new() == []


@pytest.mark.parametrize("missing", ["library", "driver"])
@in_its_own_process
def test_no_library_and_no_driver_for_it(missing: str, monkeypatch: pytest.MonkeyPatch):
    if missing == "library":
        monkeypatch.setenv("TILEGRAD_CUBLASLT", "/nowhere/libcublasLt.so")
    else:
        monkeypatch.setenv("STANDIN_DRIVER", "12080")
    library = cupy_double()
    without_triton(monkeypatch)
    arrays = Arrays(library, Case())
    arrays.check_forward(arrays.forward())
    arrays.check_backward(arrays.backward())
    emulate()
    with tg.backend("cuda"):
        arrays.check_forward(arrays.forward())
        arrays.check_backward(arrays.backward())
    why = cublaslt.why_not(0)
    assert why is not None
    assert ("/nowhere/libcublasLt.so" if missing == "library" else "needs a driver for CUDA 13") in why
    found, what = cublaslt.describe()
    assert (found, what) == (False, why) if missing == "library" else found


@in_its_own_process
def test_what_info_says():
    from click.testing import CliRunner

    from tilegrad.cli.info import info

    _, file = _C.cublaslt_load([])
    said = CliRunner().invoke(info).output
    assert f"  cuBLASLt  yes  13.0.2 ({file})\n" in said
    chips = ", ".join(_C.cuda_architectures)
    kernels = f"yes  CUDA C++ kernels for {chips}" if chips else "no   this build has no CUDA C++ kernels"
    assert f"  kernels   {kernels}\n" in said


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*taken(), *ELSEWHERE], ids=str)
def test_linear_of_cupy_on_a_gpu(case: Case):
    import cupy

    arrays = Arrays(cupy, case)
    assert cublaslt.why_not(0) is None
    for choice in ("auto", "cuda") if cuda_kernels.why_not() is None else ("auto",):
        with tg.backend(choice):
            arrays.check_forward(arrays.forward(), rounding=4)
            if case.activation != "silu":
                arrays.check_backward(arrays.backward())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
def test_relu_keeps_nan_on_a_gpu(dtype: str):
    import cupy

    arrays = Arrays(cupy, Case(dtype, "relu"))
    arrays.x[0, 0] = np.nan
    out, _ = arrays.forward()
    assert cupy.isnan(out[0].astype("float64")).all()
    assert not cupy.isnan(out[1:].astype("float64")).any()
