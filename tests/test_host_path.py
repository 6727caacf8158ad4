"""The launcher's host side against a stand-in for NVIDIA's driver library: which kernel goes where, with what.

No kernel runs here. Most tests have a process of their own, since what is imported first is part of them; the stand-in
(standin/libcuda.c) refuses there what the driver would refuse, and records every call.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin import driver
from standin.cupy_arrays import Cupy, Tensors
from standin.process import in_its_own_process, without_torch
from standin.torch_tensors import Torch

pytest.importorskip("triton")

LIBRARIES: dict[str, Any] = {"cupy": Cupy, "torch": Torch}


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driver.build(tmp_path_factory.mktemp("standin"))


def launch_scale(library: Any, x: Any, y: Any, grid: tuple[int, ...] = (3, 2)) -> driver.Launch:
    """Launch a small kernel on two arrays: what the driver was told."""
    from standin.kernels import scale

    from tilegrad.kernels.launch import launch, view

    driver.calls()
    launch(scale, grid, view(x), view(y), 1000, 0.5, BLOCK=256, num_warps=4)
    (made,) = driver.launches()
    assert made.kernel == "scale"
    assert made.grid == (*grid, 1)
    assert made.threads == 128
    assert made.integer(0) == library.address(x)
    assert made.integer(1) == library.address(y)
    assert made.integer(2) == 1000
    assert np.frombuffer(made.arguments[3], np.float32) == 0.5
    return made


# --- streams and devices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["cupy", "torch", "cupy, torch", "torch, cupy"])
@in_its_own_process
def test_a_kernel_goes_to_the_current_stream_of_the_library_that_owns_the_arrays(order: str):
    here: list[Any] = []
    if "torch" not in order:
        without_torch()
    for name in order.split(", "):
        here.append(LIBRARIES[name]())
        for library in here:
            for device in (0, 1):
                x, y = library.empty((1000,), device=device), library.empty((1000,), device=device)
                streams = {lib: driver.create_stream(device) for lib in here}
                with contextlib.ExitStack() as current:
                    for lib, stream in streams.items():
                        current.enter_context(lib.streams.use(device, stream))
                    made = launch_scale(library, x, y)
                assert (made.stream, made.device) == (streams[library], device)
                made = launch_scale(library, x, y)
                assert (made.stream, made.device) == (0, device)
                assert driver.current_device() == 0
    assert {"cupy", "torch"} & set(sys.modules) == set(order.split(", "))


@in_its_own_process
def test_the_current_device_comes_back_after_a_launch_that_fails():
    for library in (Cupy(), Torch()):
        driver.set_device(0)
        x, y = library.empty((1000,), device=1), library.empty((1000,), device=1)
        with pytest.raises(RuntimeError, match="invalid argument"):
            launch_scale(library, x, y, grid=(1, 1 << 16))
        assert driver.current_device() == 0
        stream = driver.create_stream(1)
        driver.set_device(1)
        with library.streams.use(1, stream):
            assert launch_scale(library, x, y).stream == stream
        assert driver.current_device() == 1
        made = launch_scale(library, library.empty((1000,)), library.empty((1000,)))
        assert (made.stream, made.device) == (0, 0)
        assert driver.current_device() == 1


@in_its_own_process
def test_a_thread_that_has_no_context_yet():
    """As those that torch runs a backward pass in."""
    without_torch()
    library = Cupy()
    x, y = library.empty((1000,), device=1), library.empty((1000,), device=1)
    stream = driver.create_stream(1)
    with library.streams.use(1, stream), ThreadPoolExecutor(1) as thread:
        made = thread.submit(launch_scale, library, x, y).result()
    assert (made.stream, made.device) == (stream, 1)


@in_its_own_process
def test_cupy_arrays_beside_a_torch_that_knows_no_gpu():
    from standin.kernels import scale

    from tilegrad.kernels.launch import view

    pytest.importorskip("torch")
    library = Cupy()
    stream = driver.create_stream(1)
    with library.streams.use(1, stream):
        made = launch_scale(library, library.empty((1000,), device=1), library.empty((1000,), device=1))
        assert (made.stream, made.device) == (stream, 1)
        # So do other people's kernels, now that the driver does not ask torch.
        x, y = view(library.empty((1000,), device=1)), view(library.empty((1000,), device=1))
        with library.cuda.Device(1):
            scale[(5,)](x, y, 1000, 0.5, BLOCK=256, enable_fp_fusion=True)
        (made,) = driver.launches()
        assert (made.stream, made.device) == (stream, 1)


@in_its_own_process
def test_nothing_in_a_launch_waits_or_allocates():
    from standin.kernels import scale

    from tilegrad.kernels.launch import Chip, chip_of, launch, view

    without_torch()
    library = Cupy()
    x, y = library.empty((1000,), device=1), library.empty((1000,), device=1)
    assert chip_of(view(x)) == Chip("sm_90", 132)
    launch_scale(library, x, y)
    driver.calls()
    launch(scale, (4,), view(x), view(y), 1000, 0.5, BLOCK=256, num_warps=4)
    made = [c["call"] for c in driver.calls()]
    switch = ["cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"]
    assert made == [*switch, "cuPointerGetAttribute", "cuPointerGetAttribute", "cuLaunchKernelEx", *switch]
    launch(scale, (4, 0), view(x), view(y), 1000, 0.5, BLOCK=256, num_warps=4)
    assert driver.calls() == []


@in_its_own_process
def test_arrays_in_tuples_and_none():
    from standin.kernels import copy_pair

    from tilegrad.kernels.launch import launch, optional, view

    without_torch()
    library = Cupy()
    x, y, bias = (library.empty((64,), device=1) for _ in range(3))
    driver.calls()
    launch(copy_pair, (1,), (view(x), view(y)), optional(None), BLOCK=64, num_warps=1)
    launch(copy_pair, (1,), (view(x), view(y)), optional(bias), BLOCK=64, num_warps=1)
    without, given = driver.launches()
    assert (without.device, given.device) == (1, 1)
    assert [without.integer(i) for i in range(2)] == [library.address(a) for a in (x, y)]
    assert [given.integer(i) for i in range(3)] == [library.address(a) for a in (x, y, bias)]
    assert len(given.arguments) == len(without.arguments) + 1
    assert without.function != given.function


# --- one compiled kernel for every library ----------------------------------------------------------------------------


@in_its_own_process
def test_both_libraries_share_a_compiled_kernel_and_alignment_makes_another():
    cupy, torch = Cupy(), Torch()
    loaded = {}
    for dtype in ("float32", "bfloat16", "float16", "int64", "bool"):
        one, other = (launch_scale(lib, lib.empty((1000,), dtype), lib.empty((1000,))) for lib in (cupy, torch))
        assert one.function == other.function
        loaded[dtype] = one.function
    assert len(set(loaded.values())) == len(loaded)
    one, other = (launch_scale(lib, lib.empty((1000,), skipped=4), lib.empty((1000,))) for lib in (cupy, torch))
    assert one.function == other.function
    assert one.function not in loaded.values()
    assert launch_scale(torch, torch.empty((1000,), skipped=16), torch.empty((1000,))).function == loaded["float32"]


# --- other people's kernels and drivers -------------------------------------------------------------------------------


@in_its_own_process
def test_other_peoples_kernels_keep_going_to_torchs_current_stream():
    import triton
    from standin.kernels import copy_tile, scale
    from triton.tools.tensor_descriptor import TensorDescriptor

    torch = Torch()
    x, y = torch.empty((1000,)), torch.empty((1000,))
    matrix = torch.empty((64, 64))
    stream = driver.create_stream(0)
    for turn in range(3):
        with torch.streams.use(0, stream):
            scale[(5,)](x, y, 1000, 0.5, BLOCK=256, enable_fp_fusion=True)
            described = TensorDescriptor.from_tensor(matrix, [32, 32])
            copy_tile[(1,)](described, y, ROWS=32, COLUMNS=32, enable_fp_fusion=True)
        assert [made.stream for made in driver.launches()] == [stream, stream]
        active = triton.runtime.driver.active
        assert active.get_active_torch_device() == torch.module.device("cuda:0")
        assert active.get_device_interface() is torch.module.cuda
        if turn == 1:
            triton.runtime.driver.reset_active()  # Triton's own again
        assert launch_scale(torch, x, y).stream == 0


@in_its_own_process
def test_a_users_own_driver_is_left_alone():
    import triton
    from triton.backends.nvidia.driver import CudaDriver

    torch = Torch()

    class Mine(CudaDriver):
        pass

    mine = Mine()
    mine.get_current_stream = lambda index: special
    triton.runtime.driver.set_active(mine)
    special = driver.create_stream(1)
    made = launch_scale(torch, torch.empty((1000,), device=1), torch.empty((1000,), device=1))
    assert (made.stream, made.device) == (special, 1)
    assert triton.runtime.driver.active is mine
    assert driver.current_device() == 0


# --- tensor descriptors -----------------------------------------------------------------------------------------------


@in_its_own_process
def test_a_descriptor_says_where_the_matrix_lies():
    from standin.kernels import copy_tile

    from tilegrad.kernels.launch import descriptor, fits_descriptor, launch, view

    for library in (Cupy(), Torch()):
        whole, y = view(library.empty((300, 520), "bfloat16", 1)), view(library.empty((256, 128), "bfloat16", 1))
        part = whole.narrow(1, 16, 200).narrow(0, 3, 290)
        assert fits_descriptor(part)
        stream = driver.create_stream(1)
        driver.calls()
        with library.streams.use(1, stream):
            launch(copy_tile, (1,), descriptor(part, [256, 128]), y, ROWS=256, COLUMNS=128, num_warps=8)
        record = driver.calls()
        (made,) = driver.launches(record)
        assert (made.stream, made.device, made.threads) == (stream, 1, 256)
        # The tile takes 64 KiB: more than a kernel may have without asking.
        assert 256 * 128 * 2 <= made.shared < 256 * 128 * 2 + 1024
        encoded = driver.map_of(made, 0, record)
        assert encoded["address"] == library.address(whole.owner) + (3 * 520 + 16) * 2
        assert (encoded["dims"], encoded["strides"]) == ([200, 290], [1040])
        assert encoded["type"] == 9  # CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
        # A box is as wide as a swizzled line of 128 bytes.
        assert (encoded["box"], encoded["swizzle"], encoded["fill"]) == ([64, 256], 3, 0)
        assert [made.integer(i) for i in range(1, 6)] == [290, 200, 520, 1, y.address]


SIZES = st.sampled_from([1, 7, 64, 1000, 2**31 - 1] * 3 + [0])
STEPS = st.sampled_from([16, 48, 1024, 2**40 - 16] * 3 + [8, 1000, 2**40, 2**40 + 16])  # bytes


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_fits_descriptor_tells_what_the_driver_takes(standin: Path, data: st.DataObject):
    from tilegrad.kernels.launch import DType, View, descriptor, fits_descriptor

    dtype = DType(data.draw(st.sampled_from(["bfloat16", "float16", "float32", "float64", "uint8"])))
    shape = tuple(data.draw(st.lists(SIZES, min_size=1, max_size=5)))
    steps = (*(data.draw(STEPS) // dtype.itemsize for _ in shape[1:]), 1)
    address = 2**20 + data.draw(st.sampled_from([0] * 6 + [8, 16, 24]))
    v = View(address, dtype, shape, steps, None)
    rank = len(shape)
    encode = ctypes.CDLL(str(standin)).cuTensorMapEncodeTiled
    buffer = ctypes.create_string_buffer(128 + 63)
    kind = {"bfloat16": 9, "float16": 6, "float32": 7, "float64": 8, "uint8": 0}[dtype.name]
    refused = encode(
        ctypes.c_void_p(ctypes.addressof(buffer) + -ctypes.addressof(buffer) % 64),
        kind,
        rank,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 5)(*reversed(shape)),
        (ctypes.c_uint64 * 5)(*(s * dtype.itemsize for s in reversed(steps[:-1]))),
        (ctypes.c_uint32 * 5)(*[16] * rank),
        (ctypes.c_uint32 * 5)(*[1] * rank),
        *(0, 0, 0, 0),
    )
    assert fits_descriptor(v) == (refused == 0)
    if fits_descriptor(v):
        descriptor(v, [16] * rank)  # Triton's own checks agree


def test_descriptors_are_not_for_what_they_cannot_say():
    from tilegrad.kernels.launch import DType, View, fits_descriptor

    f32 = DType("float32")
    assert fits_descriptor(View(256, f32, (8, 8), (8, 1), None))
    for steps in ((1, 8), (0, 1), (-8, 1), (16, 2)):
        assert not fits_descriptor(View(256, f32, (8, 8), steps, None))
    assert not fits_descriptor(View(256, f32, (2**31, 8), (8, 1), None))  # kernels take sizes as 32-bit integers


# --- what is refused --------------------------------------------------------------------------------------------------


@in_its_own_process
def test_a_chip_that_is_too_old():
    from tilegrad.kernels.launch import chip_of, view

    os.environ["STANDIN_CAPABILITY"] = "7.5"
    for library in (Cupy(), Torch()):
        x, y = library.empty((1000,), device=1), library.empty((1000,), device=1)
        for attempt in (lambda: chip_of(view(x)), lambda: launch_scale(library, x, y)):
            with pytest.raises(RuntimeError) as raised:
                attempt()
            message = "the Triton kernels need compute capability 8.0 or newer, got sm_75 (device 1)"
            assert str(raised.value) == message
        assert driver.current_device() == 0
    assert not [c for c in driver.calls() if c["call"] in ("cuModuleLoadData", "cuLaunchKernelEx")]


@in_its_own_process
def test_arrays_in_memory_of_the_cpu():
    from standin.kernels import scale

    from tilegrad.kernels.launch import chip_of, launch, view

    torch = Torch()
    gpu = view(torch.empty((1000,)))
    for x, kind in ((np.zeros(1000, np.float32), "numpy.ndarray"), (torch.module.zeros(1000), "torch.Tensor")):
        for attempt in (
            lambda: chip_of(view(x)),
            lambda: launch(scale, (4,), view(x), gpu, 1000, 0.5, BLOCK=256, num_warps=4),
        ):
            with pytest.raises(RuntimeError, match=f"need arrays on a GPU, got {kind} in memory of the CPU"):
                attempt()
        with pytest.raises(ValueError, match="cannot be accessed from Triton"):
            launch(scale, (4,), gpu, view(x), 1000, 0.5, BLOCK=256, num_warps=4)
    assert not driver.launches()


# --- tilegrad's own functions -----------------------------------------------------------------------------------------


class Case(NamedTuple):
    call: Callable[[], Any]
    leaves: list[Any]
    forward: int  # kernels at the most
    backward: int
    maps: bool = False  # the kernels take tensor maps


WAITS_OR_ALLOCATES = {"cuCtxSynchronize", "cuStreamSynchronize", "cuMemcpyDtoH", "cuMemAlloc_v2"}


@pytest.mark.parametrize("kind", ["Tensor", "torch"])
@in_its_own_process
def test_fused_operations(kind: str):
    """How many kernels a forward and a backward pass take, where they go, and that they work on what comes out."""
    if kind == "Tensor":
        without_torch()
    library: Any = Torch() if kind == "torch" else Tensors()
    import tilegrad as tg
    import tilegrad.nn.functional as F

    address = library.address

    def tensor(x: np.ndarray, dtype: str = "bfloat16") -> Any:
        return library.tensor(x, dtype, device=1)

    x, weight, bias = (tensor(np.ones(shape)) for shape in ((256, 512), (384, 512), (384,)))
    odd_x, odd_weight = (tensor(np.ones(shape)) for shape in ((256, 509), (384, 509)))  # rows are not on 16 bytes
    target = tensor(np.arange(256), "int64")
    cases = {
        "log_softmax": Case(lambda: F.log_softmax(x, 1), [x], 1, 1),
        "cross_entropy": Case(lambda: F.cross_entropy(x, target), [x], 2, 1),
        "linear": Case(lambda: F.linear(x, weight, bias, activation="gelu"), [x, weight, bias], 1, 3, maps=True),
        "linear of odd rows": Case(lambda: F.linear(odd_x, odd_weight), [odd_x, odd_weight], 1, 2),
    }
    stream = driver.create_stream(1)

    def recorded(pass_: Callable[..., Any], *args: Any) -> tuple[Any, list[dict[str, Any]]]:
        driver.calls()
        with library.streams.use(1, stream), tg.backend("triton"):
            made = pass_(*args)
        return made, driver.calls()

    for name, case in cases.items():
        for leaf in case.leaves:
            leaf.requires_grad_()
        for turn in (1, 2):
            for leaf in case.leaves:
                leaf.grad = None
            made, forward = recorded(case.call)
            upstream = tensor(np.full(made.shape, 2.0))
            _, backward = recorded(made.backward, upstream)
            for record, most in ((forward, case.forward), (backward, case.backward)):
                launched = driver.launches(record)
                assert 1 <= len(launched) <= most, name
                assert {(one.stream, one.device) for one in launched} == {(stream, 1)}, name
                called = {c["call"] for c in record}
                assert ("cuTensorMapEncodeTiled" in called) == case.maps, name
                # Nor a kernel of the array library's own, once the flag for targets out of range is made.
                assert turn == 1 or not {c for c in called if c in WAITS_OR_ALLOCATES or " kernel" in c}, name
            assert {address(made), *map(address, case.leaves)} <= driver.addresses(forward), name
            gradients = {address(leaf.grad) for leaf in case.leaves}
            assert {address(upstream), *gradients} <= driver.addresses(backward), name
            assert driver.current_device() == 0

    loss, _ = recorded(cases["cross_entropy"].call)
    _, backward = recorded(loss.backward)
    assert len(driver.launches(backward)) <= 1
    assert not {c["call"] for c in backward} & WAITS_OR_ALLOCATES


@in_its_own_process
def test_the_backend_that_is_chosen_for_arrays_on_a_gpu():
    without_torch()
    library = Tensors()
    import tilegrad.nn.functional as F

    x = library.tensor(np.ones((4, 5)), "float32")
    driver.calls()
    F.log_softmax(x, 1)
    assert len(driver.launches()) == 1
