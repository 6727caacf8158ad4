"""What the compiled CPU kernels promise beside the contract: threads, forks, instruction sets, memory that runs out.

`make sanitize` runs this file under the sanitizers too; nothing here needs torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tilegrad as tg
import tilegrad.nn.functional as F
from tilegrad.backends import describe

if not {name: runs for name, runs, _ in describe()}["cpu"] and not (shutil.which("c++") or shutil.which("g++")):
    pytest.skip("there is no C++ compiler, so this installation has no kernels", allow_module_level=True)

import fuzz_cpu
from fuzz_cpu import set_num_threads

from tilegrad import cpu

TESTS = Path(__file__).parent
THREADS = (1, 2, 3, 7)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = cpu._C.num_threads()
    yield
    set_num_threads(before)


def run_python(code: str, *, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where the modules of tests/ can be imported."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


# --- threads ----------------------------------------------------------------------------------------------------------


def everything() -> list[np.ndarray]:
    """Results and gradients of all operations, on arrays that are worth several threads."""
    rng = np.random.default_rng(0)

    def leaf(*shape: int) -> tg.Tensor:
        return tg.tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)

    x, w, b = leaf(301, 517), leaf(130, 517), leaf(130)
    t, weight = tg.tensor(rng.integers(0, 130, 301)), tg.tensor(rng.random(130).astype(np.float32))
    with tg.backend("cpu"):
        logits = F.linear(x, w, b, activation="gelu")
        results = [
            F.softmax(x, 1), F.log_softmax(x, 0), F.softmax(x, 1, dtype=np.float64), logits,
            F.cross_entropy(logits, t, weight=weight, z_loss=0.1),
            F.cross_entropy(logits, t, reduction="none", label_smoothing=0.1, softcap=5.0),
            F.linear_cross_entropy(x, w, t, linear_bias=b),
        ]  # fmt: skip
        for result in results:
            (result * result).sum().backward(retain_graph=True)
        optimizer = tg.optim.AdamW([x, w, b])
        optimizer.step()
    return [made.numpy(force=True) for made in (*results, x.grad, w.grad, b.grad, x, w, b)]


def assert_same(made: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for i, (a, b) in enumerate(zip(made, expected, strict=True)):
        assert a.tobytes() == b.tobytes(), f"result {i} differs by up to {np.abs(a - b).max()}"


def assert_same_whatever_the_threads(make: Callable[[], list[np.ndarray]]) -> None:
    set_num_threads(THREADS[0])
    expected = make()
    for threads in THREADS[1:]:
        set_num_threads(threads)
        assert_same(make(), expected)


def test_results_do_not_depend_on_the_number_of_threads():
    assert_same_whatever_the_threads(everything)


def test_several_python_threads_may_call_at_once():
    set_num_threads(3)
    expected = everything()
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(3):
            assert_same(everything(), expected)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result()


def without_threads() -> None:
    """Everything once more where the system gives no more threads."""
    import resource

    set_num_threads(1)
    expected = everything()
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if os.getuid() == 0:  # whom it does not limit
        os.setuid(65534)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threading.Thread(target=print).start()
    set_num_threads(3)
    assert_same(everything(), expected)


def test_a_call_works_where_no_thread_is_to_be_had():
    run_python("import test_cpu; test_cpu.without_threads()")


# --- forks ------------------------------------------------------------------------------------------------------------


def in_a_fork(check: Callable[[], None], seconds: float = 60) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            check()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with {status}"
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_parent_and_child_of_a_fork_go_on():
    set_num_threads(3)
    expected = everything()

    def check() -> None:
        assert_same(everything(), expected)
        in_a_fork(lambda: assert_same(everything(), expected))

    in_a_fork(check)
    assert_same(everything(), expected)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_call_of_another_thread():
    set_num_threads(2)
    x = np.random.default_rng(0).standard_normal((400, 1000)).astype(np.float32)
    expected, out = np.empty_like(x), np.empty_like(x)
    cpu.softmax(x, 1, False, out=expected)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            cpu.softmax(x, 1, False, out=out)

    def check() -> None:
        made = np.empty_like(x)
        cpu.softmax(x, 1, False, out=made)
        assert_same([made], [expected])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            in_a_fork(check)
    finally:
        stop.set()
        thread.join()
    check()
    assert_same([out], [expected])


# --- instruction sets -------------------------------------------------------------------------------------------------

ISAS = ("baseline", "avx2", "avx512")


@pytest.fixture(params=ISAS, scope="module")
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this machine runs."""
    tried = run_python("from tilegrad import cpu; print(cpu._C.isa())", check=False, TILEGRAD_ISA=request.param)
    if "this processor does not run" in tried.stderr or "expected one of" in tried.stderr:
        pytest.skip(tried.stderr.strip().rpartition("\n")[2])
    assert tried.stdout.strip() == request.param, tried.stderr
    return request.param


def bad_rows() -> None:
    """NaN, inf and nothing but −inf stay in their row, at every place of short rows and at some of long ones."""
    for dtype in (np.float32, np.float64, np.float16, tg.bfloat16.dtype):
        for columns in (*range(1, 36), 63, 64, 65, 257, 1000, 8200):
            x = np.random.default_rng(columns).standard_normal((5, columns)).astype(dtype)
            places = {0, columns // 2, columns - 1} if columns > 17 else set(range(columns))
            for bad, place in [(b, p) for b in (np.nan, np.inf) for p in places] + [(-np.inf, slice(None))]:
                spoilt = x.copy()
                spoilt[2, place] = bad
                check_bad_row(x, spoilt)


def nan_beside_a_maximum() -> None:
    """In a block behind one of small numbers, the maximum stands in any lane, and a NaN in any other is the last."""
    for dtype in (np.float32, np.float64):
        for top in range(16):
            for nan in range(16):
                x = np.zeros((1, 520), dtype)
                x[0, 256 + top], x[0, 511 - nan] = 100, np.nan
                for options in ({}, {"softcap": 150.0}, {"label_smoothing": 0.1}):
                    assert np.isnan(F.cross_entropy(x, np.zeros(1, np.int64), **options))
                assert np.isnan(F.log_softmax(x, 1)).all()


def check_bad_row(x: np.ndarray, spoilt: np.ndarray) -> None:
    t, good = np.zeros(len(x), np.int64), [0, 1, 3, 4]
    with tg.backend("cpu"):
        for function in (F.softmax, F.log_softmax):
            made = function(spoilt, 1)
            assert np.isnan(made[2].astype(float)).all()
            assert made[good].tobytes() == function(x, 1)[good].tobytes()
        for options in ({}, {"label_smoothing": 0.1}):
            clean, logits = tg.tensor(x, requires_grad=True), tg.tensor(spoilt, requires_grad=True)
            for leaf in (clean, logits):
                F.cross_entropy(leaf, tg.tensor(t), reduction="sum", **options).backward()
            grad = logits.grad.numpy()
            assert np.isnan(grad[2].astype(float)).all()
            assert grad[good].tobytes() == clean.grad.numpy()[good].tobytes()


def test_a_bad_row_stays_alone_on_every_instruction_set(isa: str):
    run_python("import test_cpu; test_cpu.bad_rows()", TILEGRAD_ISA=isa)


def test_nan_beside_a_maximum_on_every_instruction_set(isa: str):
    run_python("import test_cpu; test_cpu.nan_beside_a_maximum()", TILEGRAD_ISA=isa)  # it went on for ever


def test_random_calls_on_every_instruction_set(isa: str):
    run_python("import fuzz_cpu; fuzz_cpu.run(seed=1, cases=60)", TILEGRAD_ISA=isa)


def test_an_unknown_instruction_set_is_an_error_that_lists_them():
    done = run_python("from tilegrad import cpu; cpu._C.isa()", check=False, TILEGRAD_ISA="sse9")
    assert done.returncode
    assert "TILEGRAD_ISA: expected one of" in done.stderr
    assert "baseline" in done.stderr
    assert "got 'sse9'" in done.stderr


# --- products of bfloat16 ---------------------------------------------------------------------------------------------

# Rows, features, outputs: at the edges of vectors and tiles, and beyond the largest blocks in each of the three.
PRODUCTS = (
    (1, 1, 1), (2, 3, 5), (13, 31, 33), (15, 64, 16), (29, 65, 66), (127, 257, 130), (300, 7, 40), (3, 1500, 70),
    (1130, 5, 33), (17, 2051, 1030), (40, 16, 1100),
)  # fmt: skip


def in_layout(x: np.ndarray, layout: int) -> np.ndarray:
    """The same numbers: dense, transposed, with gaps (of NaN), or backwards."""
    if layout < 2:
        return np.asarray(x, order="CF"[layout])
    if layout == 2:
        room = np.full((2 * x.shape[0], 3 * x.shape[1]), np.nan, x.dtype)
        room[::2, ::3] = x
        return room[::2, ::3]
    return x[::-1, ::-1].copy()[::-1, ::-1]


def products_of_bfloat16() -> list[np.ndarray]:
    """Linears and their gradients, each within a rounding of the product in float64 and a few of its float32 sums."""
    rng, made = np.random.default_rng(0), []

    def check(got: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        a, b = a.astype(np.float64), b.astype(np.float64)
        truth, scale = a @ b, np.abs(a) @ np.abs(b)
        bound = 2.0**-8 * np.abs(truth) + 2.0**-23 * (8 + a.shape[1] / 8) * scale
        assert (np.abs(got.astype(np.float64) - truth) <= bound).all(), (a.shape, b.shape)
        made.append(got)

    for number, (rows, features, outputs) in enumerate(PRODUCTS):
        x, w, g = (
            in_layout(rng.standard_normal(shape).astype(tg.bfloat16.dtype), (number + i) % 4)
            for i, shape in enumerate([(rows, features), (outputs, features), (rows, outputs)])
        )
        grad_input, grad_weight = np.empty(x.shape, x.dtype), np.empty(w.shape, w.dtype)
        with tg.backend("cpu"):
            check(F.linear(x, w), x, w.T)
        cpu.linear_backward(g, x, w, None, None, grad_input=grad_input, grad_weight=grad_weight, grad_bias=None)
        check(grad_input, g, w)
        check(grad_weight, g.T, x)
    return made


def test_products_of_bfloat16_are_float32_sums_whatever_the_threads():
    assert_same_whatever_the_threads(products_of_bfloat16)


def test_products_of_bfloat16_on_every_instruction_set(isa: str):
    run_python("import test_cpu; test_cpu.products_of_bfloat16()", TILEGRAD_ISA=isa)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_products_of_bfloat16_keep_a_bad_row_to_itself(bad: float):
    x, w = (np.random.default_rng(0).standard_normal((n, 37)).astype(tg.bfloat16.dtype) for n in (20, 50))
    spoilt = x.copy()
    spoilt[7, 36] = bad  # in the last pair, of which the other half is not there
    with tg.backend("cpu"):
        made, expected = F.linear(spoilt, w).astype(float), F.linear(x, w).astype(float)
    expected[7] = bad * np.sign(w[:, 36].astype(float))
    np.testing.assert_array_equal(made, expected)


# --- many dimensions --------------------------------------------------------------------------------------------------


def test_rows_of_more_dimensions_than_the_kernels_know():
    x = np.random.default_rng(0).standard_normal((*[2] * 14, 4, 3), np.float32).T  # no two dimensions can be joined
    dense, target = np.ascontiguousarray(x), np.zeros((3, *[2] * 14), np.int64)
    made = []
    for array in (x, dense):
        logits = tg.from_numpy(array).requires_grad_()
        loss = F.cross_entropy(logits, tg.from_numpy(target), label_smoothing=0.1, reduction="none")
        (loss.sum() + F.log_softmax(logits, 1).mul(logits).sum()).backward()
        made.append([loss.detach().numpy(), logits.grad.numpy()])
    assert_same(*made)


# --- random calls -----------------------------------------------------------------------------------------------------


def test_random_calls_equal_the_reference():
    fuzz_cpu.run(seed=0, cases=200)


# --- errors -----------------------------------------------------------------------------------------------------------


SIGNED = ["int8", "int16", "int32", "int64"]


@pytest.mark.parametrize(("dtype", "bad"), [(d, 100) for d in (*SIGNED, "uint8")] + [(d, -1) for d in SIGNED])
def test_a_target_out_of_range_runs_nothing(dtype: str, bad: int, monkeypatch: pytest.MonkeyPatch):
    x, t = np.zeros((70, 100), np.float32), np.zeros(140, dtype)[::2]
    t[69] = bad
    monkeypatch.setattr(cpu, "cross_entropy", lambda *a, **k: pytest.fail("it was run"))
    monkeypatch.setattr(cpu, "nll_loss", lambda *a, **k: pytest.fail("it was run"))
    with tg.backend("cpu"):
        for loss in (F.cross_entropy, F.nll_loss):
            with pytest.raises(IndexError, match=rf"expected targets in \[0, 100\).*got {bad}"):
                loss(x, t)


def out_of_memory() -> None:
    """Outputs and workspace that do not fit, one after the other."""
    import resource

    used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
    x = np.ones((1 << 20, 20), np.float32)  # 80 MiB
    seen = x.copy()
    row = np.ones((1, 20), np.float32)
    many = np.broadcast_to(row, (1 << 24, 20))  # 1280 MiB of output
    with tg.backend("cpu"):
        for call, sizes in (
            (lambda: F.softmax(many, 1), "16777216, 20"),
            (lambda: F.linear(x, np.ones((200, 20), np.float32)), "1048576, 200"),
            (lambda: F.cross_entropy(many, np.zeros(1 << 24, np.int8), reduction="none"), "16777216"),
        ):
            try:
                call()
            except MemoryError as error:
                assert sizes in str(error), error  # noqa: PT017
            else:
                raise AssertionError("there was enough memory")
        assert (x == seen).all()
        assert (row == 1).all()
        F.softmax(x[:1000], 1)


@pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer takes all addresses for itself")
def test_memory_that_runs_out_is_an_error_that_says_the_sizes():
    run_python("import test_cpu; test_cpu.out_of_memory()", OPENBLAS_NUM_THREADS="1")


# --- memory that was used before --------------------------------------------------------------------------------------


def test_large_outputs_take_over_the_memory_of_those_before():
    x = np.random.default_rng(0).standard_normal((600, 1000), dtype=np.float32)
    first = F.log_softmax(x, 1)
    place, expected = first.ctypes.data, first.copy()
    assert first.flags.owndata
    assert first.base is None
    del first
    again = F.log_softmax(x, 1)
    assert again.ctypes.data == place
    np.testing.assert_array_equal(again, expected)
    held = F.log_softmax(x, 1)
    assert held.ctypes.data != place  # somebody has it


def test_such_memory_can_be_resized_passed_on_and_given_back():
    a = cpu.empty((300, 1000), np.dtype(np.float32))
    a[...] = np.arange(1000)
    a.resize((600, 1000))
    np.testing.assert_array_equal(a[:300], np.broadcast_to(np.arange(1000), (300, 1000)))
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda i: np.full_like(cpu.empty((1 << 18,), np.dtype(np.float64)), i), range(40)))
        other = list(threads.map(lambda i: cpu.empty((1 << 18,), np.dtype(np.float64)), range(40)))
    assert len({x.ctypes.data for x in other}) == 40
    np.testing.assert_array_equal([x[0] for x in made], range(40))
    del made, other, a
    cpu._C.release_memory()
    for bad in (((1, "2"), np.dtype("f4")), ([1], np.dtype("f4")), ((1,), "f4")):
        with pytest.raises(TypeError):
            cpu._C.empty(*bad)
    with pytest.raises(MemoryError, match=r"1125899906842624|1.00 PiB|PiB"):
        cpu.empty((1 << 50,), np.dtype(np.int8))
