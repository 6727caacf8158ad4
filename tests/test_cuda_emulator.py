"""The emulator of CUDA C++ (cuda_emulator/README.md): right kernels run, and planted bugs are found and named."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from cuda_emulator import build
from cuda_emulator.library import BOTH, EARLY, LATE, RANDOM, READ, WORKSPACE, WRITE, Library, Traffic

PLANTED = Path(build.EMULATOR) / "planted"
SCHEDULES = [(seed, completion) for seed in range(3) for completion in (EARLY, LATE, RANDOM)]
every_schedule = pytest.mark.parametrize(("seed", "completion"), SCHEDULES)


class Planted(Library):
    """The planted kernels."""

    def run(self, name: str, *arguments: np.ndarray | int) -> str:
        """What went wrong, or nothing."""
        function = self.functions["run_" + name]
        function.restype = ctypes.c_char_p
        converted = [
            ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_int(a) for a in arguments
        ]
        return function(*converted).decode()

    def watch_only(self, **arrays: np.ndarray) -> AbstractContextManager[None]:
        """x is read, y is written, others are both; a workspace holds nothing at first."""
        access = {"x": READ, "y": WRITE, "workspace": WORKSPACE}
        return self.watch(**{name: (array, access.get(name, BOTH)) for name, array in arrays.items()})


@pytest.fixture(scope="module")
def library() -> Planted:
    return Planted(build.library(sorted(PLANTED.glob("*.cu"))))


@pytest.fixture
def emulator(library: Planted) -> Planted:
    library.configure()
    return library


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-8, 8, shape).astype(np.float32)  # whose sums are exact


def bugs(source: str) -> dict[str, int]:
    """The bugs that a file of planted kernels lists."""
    text = (PLANTED / source).read_text()
    names = text.split("enum class Bug {")[1].split("}")[0].replace(",", " ").split()
    return {name: number for number, name in enumerate(names)}


BARRIERS, COPIES, CLUSTERS = bugs("barriers.cu"), bugs("copies.cu"), bugs("clusters.cu")


@every_schedule
def test_right_kernels_run(emulator: Planted, seed: int, completion: int) -> None:
    emulator.configure(seed, completion)
    x = numbers(6, 200)
    y = np.zeros(6, np.float32)
    with emulator.watch_only(x=x, y=y):
        assert emulator.run("block_sum", x, y, 6, 200, 0) == ""
    assert np.array_equal(y, x.sum(1))

    x = numbers(5, 32)
    y = np.zeros_like(x)
    with emulator.watch_only(x=x, y=y):
        assert emulator.run("handshake", x, y, 5, 1) == ""
    assert np.array_equal(y, 2 * x[:, ::-1])

    x = numbers(16, 32)
    for kernel, last in (("cluster_sum", (0, 0)), ("cluster_sum_static", ())):
        y = np.zeros(16, np.float32)
        with emulator.watch_only(x=x, y=y):
            assert emulator.run(kernel, x, y, 16, 4, *last) == ""
        assert np.array_equal(y, x.reshape(4, -1).sum(1).repeat(4))

    x = numbers(7 * 256)
    y = np.zeros_like(x)
    with emulator.watch_only(x=x, y=y):
        assert emulator.run("scale_staged", x, y, 7, 0) == ""
    assert np.array_equal(y, 2 * x)


@every_schedule
def test_votes_and_shuffles(emulator: Planted, seed: int, completion: int) -> None:
    emulator.configure(seed, completion)
    y = np.zeros(12, np.uint32)
    assert emulator.run("votes", y) == ""
    thirds = sum(1 << lane for lane in range(32) if (lane + 32) % 3 == 0)
    expected = [thirds, 1, 1, sum(range(32, 64)), -63, 63, 43, 38, 40, 50, 1, 0]
    assert list(y.astype(np.int32)) == list(np.array(expected, np.int64).astype(np.int32))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("bug", "messages"),
    [
        ("missing_barrier", [r"(race|uninitialised): reads 4 bytes of static shared memory, barriers.cu:\d+"]),
        (
            "divergent_barrier",
            ["__syncthreads, barriers.cu:", "while others of its block wait at that of barriers.cu:"],
        ),
        ("divergent_shuffle", ["deadlock", "__shfl_xor_sync, barriers.cu:", "__syncthreads, barriers.cu:"]),
        ("exited_lane", ["exit", "__shfl_xor_sync"]),
        ("exit_under_shuffle", ["exit", "__shfl_xor_sync"]),
        ("lane_not_in_mask", ["__syncwarp: the mask 0x0000ffff does not name the lane itself, barriers.cu:"]),
        ("overlapping_masks", ["wait elsewhere with another mask|divergence: waits at __shfl_xor_sync"]),
        ("reads_unwritten", ["uninitialised: reads 4 bytes of static shared memory", "barriers.cu:"]),
        ("reads_outside", ["(uninitialised|out of bounds): reads 4 bytes of static shared memory, barriers.cu:"]),
        (
            "deadlock",
            [
                "deadlock: ",
                "96 threads .* wait at __syncthreads, barriers.cu:",
                "32 threads .* wait at bar.sync, barriers.cu:",
            ],
        ),
        ("named_barrier_sizes", ["named barrier 1: for", "threads here, for"]),
        ("exception", ["thrown by a thread"]),
    ],
)
def test_bug_in_block(emulator: Planted, bug: str, messages: list[str], seed: int) -> None:
    emulator.configure(seed)
    x, y = numbers(2, 300), np.zeros(2, np.float32)
    with emulator.watch_only(x=x, y=y):
        found = emulator.run("block_sum", x, y, 2, 300, BARRIERS[bug])
        assert all(re.search(message, found) for message in messages), found
        if bug != "exception":
            assert found.startswith("block_sum")
        assert emulator.run("block_sum", x, y, 2, 300, 0) == ""  # nothing is left of the launch that failed
    assert np.array_equal(y, x.sum(1))


@pytest.mark.parametrize("seed", range(3))
def test_slot_written_before_it_has_been_read(emulator: Planted, seed: int) -> None:
    emulator.configure(seed)
    x, y = numbers(4, 32), np.zeros((4, 32), np.float32)
    assert re.search("race: .* dynamic shared memory|deadlock", emulator.run("handshake", x, y, 4, 0))


def test_shuffle_orders_nothing(emulator: Planted) -> None:
    x, y = numbers(32), np.zeros(32, np.float32)
    assert emulator.run("reverse_warp", x, y, 0) == ""
    assert np.array_equal(y, x[::-1])
    assert "race: reads 4 bytes of dynamic shared memory" in emulator.run("reverse_warp", x, y, 1)


def test_arithmetic(emulator: Planted) -> None:
    y = np.zeros(17, np.uint32)
    assert emulator.run("bits", y) == ""
    integers = [0x77552200, 0x808080FF, 0x18, 0x10000001, 31, 4, 1 << 31, 8, 3, 0xFFFFFFFF, 0xFFFFFFFF]
    assert list(y[:11]) == integers
    assert list(y[11:].view(np.float32)) == [2, 0.25, 7, 1, 2.5, 1]  # halfway between two bf16: to the even one


@pytest.mark.parametrize("seed", range(3))
def test_atomics(emulator: Planted, seed: int) -> None:
    emulator.configure(seed)
    integers, longs, floats = np.zeros(8, np.int32), np.zeros(1, np.uint64), np.zeros(2, np.float32)
    integers[6] = 7
    with emulator.watch_only(integers=integers, longs=longs, floats=floats):
        assert emulator.run("atomics", integers, longs, floats) == ""
    assert list(integers) == [992, -992, 31, -31, -1, 0, 6, 128]
    assert longs == 64 << 32
    assert list(floats) == [32, 3]


@pytest.mark.parametrize("count", [1, 4, 63, 1024, 1026])
def test_traffic_is_counted(emulator: Planted, count: int) -> None:
    x, y = numbers(count), np.zeros(count, np.float32)
    with emulator.watch_only(x=x, y=y):
        assert emulator.run("scale", x, y, count, 0) == ""
        assert emulator.traffic("x") == Traffic(4 * count, 0, 4 * count, 0)
        assert emulator.traffic("y") == Traffic(0, 4 * count, 0, 4 * count)
        assert emulator.run("scale", x, y, count, 0) == ""
        assert emulator.traffic("x") == Traffic(8 * count, 0, 4 * count, 0)
    assert np.array_equal(y, 2 * x)


@pytest.mark.parametrize("completion", [EARLY, LATE, RANDOM])
def test_traffic_of_asynchronous_copies_and_structures(emulator: Planted, completion: int) -> None:
    emulator.configure(1, completion)
    x, y = numbers(768), np.zeros(768, np.float32)
    for kernel, arguments in (("scale_staged", (3, 0)), ("copy_structure", ())):
        with emulator.watch_only(x=x, y=y):
            assert emulator.run(kernel, x, y, *arguments) == ""
            assert emulator.traffic("x") == Traffic(x.nbytes, 0, x.nbytes, 0)
            assert emulator.traffic("y") == Traffic(0, y.nbytes, 0, y.nbytes)
    assert np.array_equal(y, x)


def test_access_out_of_bounds(emulator: Planted) -> None:
    memory = np.zeros(64, np.float32)
    x, y = numbers(30), memory[:30]
    with emulator.watch_only(x=x, y=y):
        found = emulator.run("scale", x, y, 30, COPIES["reads_past_the_end"])
        assert "out of bounds: reads" in found
        assert "past the end of x, copies.cu:" in found
        found = emulator.run("scale", x, y, 30, COPIES["writes_past_the_end"])
        assert "out of bounds: writes" in found
        assert "past the end of y, copies.cu:" in found
        with pytest.raises(ValueError, match="z overlaps with another array"), emulator.watch_only(z=memory[:2]):
            pass
    assert not memory[30:].any()
    with emulator.watch_only(x=x):
        assert "out of bounds: writes 4 bytes, " in emulator.run("scale", x, y, 3, 0)
    with emulator.watch_only(x=x, workspace=y):
        assert emulator.run("scale", x, y[:16], 16, 0) == ""
        assert emulator.run("scale", y[:16], y, 16, 0) == ""
        found = emulator.run("scale", y, y, 20, 0)
        assert "uninitialised: reads 4 bytes of workspace at byte 64, which nothing has written, copies.cu:" in found
        address, size = ctypes.c_void_p(y.ctypes.data + 64), ctypes.c_size_t(16)
        assert emulator.functions.cudaMemsetAsync(address, 0, size, None) == 0
        assert emulator.run("scale", y, y, 20, 0) == ""
    with emulator.watch_only(x=x, y=y):
        assert "of x at byte 0, which is for reading only, copies.cu:" in emulator.run("scale", x, x, 3, 0)
        assert "of y at byte 0, which is for writing only, copies.cu:" in emulator.run("scale", y, y, 3, 0)


def test_misaligned_vector(emulator: Planted) -> None:
    x, y = numbers(65)[1:], np.zeros(64, np.float32)
    assert (x.ctypes.data - y.ctypes.data) % 16
    for a, b in ((x, y), (y, x)):
        found = emulator.run("scale", a, b, 64, 0)
        assert "misaligned: accesses" in found
        assert "float4" in found
        assert "not a multiple of 16, copies.cu:" in found
    assert "cp.async: both addresses must be multiples of 16, copies.cu:" in emulator.run("scale_staged", x, y, 1, 0)


@every_schedule
@pytest.mark.parametrize(
    ("bug", "message"),
    [
        ("missing_wait", "not ordered after what asynchronous work of thread"),
        ("missing_barrier", "(race|uninitialised): reads 4 bytes of dynamic shared memory at byte"),
        ("early_refill", "race: (reads 4|writes 16) bytes of dynamic shared memory at byte"),
    ],
)
def test_bug_in_pipeline(emulator: Planted, bug: str, message: str, seed: int, completion: int) -> None:
    emulator.configure(seed, completion)
    x, y = numbers(4 * 256), np.zeros(4 * 256, np.float32)
    found = emulator.run("scale_staged", x, y, 4, COPIES[bug])
    assert re.search(message, found)
    assert found.count("copies.cu:") == (1 if "uninitialised" in found else 2)


@pytest.mark.parametrize("completion", [EARLY, LATE, RANDOM])
def test_waiting_for_the_last_copy_is_no_deadlock(emulator: Planted, completion: int) -> None:
    for seed in range(20):
        emulator.configure(seed, completion)
        assert emulator.run("wait_for_work") == ""


@pytest.mark.parametrize("seed", range(3))
def test_fence_between_threads_and_bulk_copies(emulator: Planted, seed: int) -> None:
    emulator.configure(seed)
    by_the_writers, by_the_reader, too_early, missing = range(4)
    assert emulator.run("hand_to_bulk_copy", by_the_writers) == ""
    assert emulator.run("hand_to_bulk_copy", by_the_reader) == ""
    for fence in (too_early, missing):
        found = emulator.run("hand_to_bulk_copy", fence)
        assert "no fence.proxy.async between what thread (0, 0, 0) wrote to shared memory and" in found


def test_bytes_of_one_word(emulator: Planted) -> None:
    y = np.zeros(64, np.int8)
    assert emulator.run("bytes", y, 0) == ""
    assert np.array_equal(y, np.arange(64) ^ 1)
    assert "race: writes 1 bytes of dynamic shared memory" in emulator.run("bytes", y, 1)


@pytest.mark.parametrize("seed", range(3))
def test_races_between_blocks(emulator: Planted, seed: int) -> None:
    emulator.configure(seed)
    counter, z = np.zeros(1, np.uint32), np.zeros(4, np.uint32)
    with emulator.watch_only(counter=counter, z=z):
        assert emulator.run("increment", z, 1) == ""
        assert emulator.run("increment", z, 1) == ""  # launches are ordered
        assert "race between blocks: reads 4 bytes of z at byte 0" in emulator.run("increment", z, 2)
        assert emulator.run("count", counter, z, 1) == ""
        # A counter is how blocks hand on data: who has changed one is taken to be ordered after all that was before.
        assert emulator.run("count", counter, z, 0) == ""
    assert counter == 2 * 4 * 32


@every_schedule
@pytest.mark.parametrize(
    ("bug", "message"),
    [
        ("reads_too_early", "(race|uninitialised): reads 4 bytes of dynamic shared memory at byte 0"),
        (
            "exits_too_early",
            "clusters.cu:\\d+, which has exited|may exit before this access to its shared memory, clusters.cu:",
        ),
        (
            "no_wait",
            "clusters.cu:\\d+, which has exited|may exit before this access to its shared memory, clusters.cu:",
        ),
        ("wrong_rank", "map_shared_rank: rank 4 of a cluster of 4"),
    ],
)
def test_bug_in_cluster(emulator: Planted, bug: str, message: str, seed: int, completion: int) -> None:
    emulator.configure(seed, completion)
    x, y = numbers(8, 32), np.zeros(8, np.float32)
    found = emulator.run("cluster_sum", x, y, 8, 4, 0, CLUSTERS[bug])
    assert found.startswith("cluster_sum, block (")
    assert re.search(message, found)


def test_access_before_the_other_block_has_started(emulator: Planted) -> None:
    found = emulator.run("cluster_store", np.zeros(2, np.float32))
    assert "before the cluster's first barrier: that block may not have started" in found


def test_limits_of_a_launch(emulator: Planted) -> None:
    x, y = numbers(32, 32), np.zeros(32, np.float32)
    assert emulator.run("cluster_sum", x, y, 32, 8, 0, 0) == ""
    assert emulator.run("cluster_sum", x, y, 32, 16, 0, 0) == "cudaErrorInvalidClusterSize"
    assert emulator.run("cluster_sum", x, y, 32, 16, 1, 0) == ""
    assert emulator.run("cluster_sum", x, y, 32, 32, 1, 0) == "cudaErrorInvalidClusterSize"
    assert emulator.run("cluster_sum", x, y, 31, 8, 0, 0) == "cudaErrorInvalidClusterSize"
    emulator.configure(compute_capability=80)
    assert emulator.run("cluster_sum", x, y, 32, 8, 0, 0) == "cudaErrorNotSupported"
    assert "a cluster barrier on a chip without clusters" in emulator.run("cluster_sum", x, y, 32, 1, 0, 0)


def test_device_of_the_runtime(emulator: Planted) -> None:
    def attribute(number: int, device: int = 0) -> int:
        value = ctypes.c_int()
        return -1 if emulator.functions.cudaDeviceGetAttribute(ctypes.byref(value), number, device) else value.value

    multiprocessors, major, minor, shared_memory = 16, 75, 76, 97  # cudaDevAttr...
    assert [attribute(a) for a in (multiprocessors, major, minor, shared_memory)] == [132, 9, 0, 227 * 1024]
    emulator.configure(compute_capability=80)
    assert [attribute(a) for a in (major, minor, shared_memory)] == [8, 0, 163 * 1024]
    name = emulator.functions.cudaGetErrorName
    name.restype = ctypes.c_char_p
    assert attribute(major, device=1) == -1
    assert name(emulator.functions.cudaPeekAtLastError()) == b"cudaErrorInvalidDevice"
    assert name(emulator.functions.cudaGetLastError()) == b"cudaErrorInvalidDevice"
    assert name(emulator.functions.cudaGetLastError()) == b"cudaSuccess"


def test_shared_memory_of_a_launch(emulator: Planted) -> None:
    y = np.zeros(1, np.float32)
    kib = 1024
    assert emulator.run("touch_shared", y, 48 * kib // 4 - 1, 48 * kib, 48 * kib) == ""
    assert y == 7
    found = emulator.run("touch_shared", y, 48 * kib // 4, 48 * kib, 48 * kib)
    assert "out of bounds: writes 4 bytes of dynamic shared memory at byte 49152" in found
    assert emulator.run("touch_shared", y, 0, 48 * kib + 4, 48 * kib) == "cudaErrorInvalidValue"
    assert emulator.run("touch_shared", y, 0, 227 * kib, 227 * kib) == ""
    assert emulator.run("touch_shared", y, 0, 0, 227 * kib + 1) == "cudaErrorInvalidValue"
    emulator.configure(compute_capability=80)
    assert emulator.run("touch_shared", y, 0, 4, 163 * kib) == ""
    assert emulator.run("touch_shared", y, 0, 0, 163 * kib + 1) == "cudaErrorInvalidValue"


def test_without_checks_what_is_read_too_early_is_poison() -> None:
    emulator = Planted(build.library([PLANTED / "copies.cu", PLANTED / "clusters.cu"], checked=False))
    x, y = numbers(4 * 256), np.zeros(4 * 256, np.float32)
    for completion in (EARLY, LATE, RANDOM):
        emulator.configure(1, completion)
        assert emulator.run("scale_staged", x, y, 4, COPIES["missing_wait"]) == ""
        assert np.array_equal(y, 2 * x) == (completion == EARLY)
        assert emulator.run("scale_staged", x, y, 4, 0) == ""
        assert np.array_equal(y, 2 * x)
    x, y = numbers(16, 32), np.zeros(16, np.float32)
    assert emulator.run("cluster_sum", x, y, 16, 4, 0, CLUSTERS["reads_too_early"]) == ""
    assert np.isnan(y).any()


def under_address_sanitizer(library: str, bug: str) -> None:
    """What a process does whose memory AddressSanitizer watches; it says "clean" before it comes to the bug."""
    emulator = Planted(Path(library))
    for seed, completion in SCHEDULES:
        test_right_kernels_run(emulator, seed, completion)
        test_votes_and_shuffles(emulator, seed, completion)
    x, y = numbers(2, 300), np.zeros(2, np.float32)
    for found in ("divergent_barrier", "deadlock", "exception"):  # whose fibers are left where they stand
        assert emulator.run("block_sum", x, y, 2, 300, BARRIERS[found])
        assert emulator.run("block_sum", x, y, 2, 300, 0) == ""

    print("clean", flush=True)
    x, y = numbers(30), np.zeros(30, np.float32)
    emulator.run("scale", x, y, 30, COPIES[bug])


@pytest.mark.parametrize(("bug", "access"), [("reads_past_the_end", "READ"), ("writes_past_the_end", "WRITE")])
def test_address_sanitizer(bug: str, access: str) -> None:
    library = build.library(sorted(PLANTED.glob("*.cu")), address_sanitizer=True)
    environment = {**os.environ, **build.address_sanitizer_environment(), "PYTHONPATH": str(build.EMULATOR.parent)}
    command = [sys.executable, __file__, str(library), bug]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "clean\n", done.stderr
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert f"{access} of size 16" in done.stderr
    assert re.search(r"#0 .* in scale\(.*copies.cu:\d+", done.stderr)


if __name__ == "__main__":
    under_address_sanitizer(*sys.argv[1:])
