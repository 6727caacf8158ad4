"""Operations that write into a tensor: values and dtypes as in torch, recorded as in torch, also through views.

Programs are written once and run in torch and here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilegrad as tg

torch = pytest.importorskip("torch")

BOTH = [pytest.param(tg, id="tilegrad"), pytest.param(torch, id="torch")]  # what holds here holds there
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")


def close(mine: Any, other: Any) -> None:
    assert str(mine.dtype).partition(".")[2] == str(other.dtype).partition(".")[2]
    assert tuple(mine.shape) == tuple(other.shape)
    np.testing.assert_allclose(mine.numpy(force=True), other.numpy(force=True), rtol=1e-10, atol=1e-12)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", [*DTYPES, 2, 2.5, True])
def test_augmented_assignment_keeps_the_dtype(a: str, b: Any):
    for op in (operator.iadd, operator.imul, operator.itruediv):
        made = []
        for lib in (tg, torch):
            x = lib.ones(3, dtype=getattr(lib, a))
            other = lib.ones(3, dtype=getattr(lib, b)) if isinstance(b, str) else b
            refusal = TypeError if lib is tg else RuntimeError
            try:
                made.append(str(op(x, other)).replace("torch.", "tilegrad."))
            except refusal:
                made.append("refused")
        assert made[0] == made[1]


def sample(lib: Any) -> Any:
    return lib.tensor([[1.5, -2.0], [0.25, 4.0]])


IN_PLACE: dict[str, Callable[[Any, Callable[..., Any]], Any]] = {
    "arithmetic": lambda lib,
    x: [x().add_(1), x().sub_(x()), x().mul_(2), x().div_(4), x().pow_(2), x().neg_(), x().abs_(), x().reciprocal_(),
    x().add_(lib.ones(2), alpha=3), x().remainder_(1.5), x().floor_divide_(2)],
    "bounds": lambda lib,
    x: [x().clamp_(0, 1), x().clamp_(min=0), x().floor_(), x().ceil_(), x().round_(), x().relu_(),
    x().masked_fill_(x() > 1, -1.0)],
    "copies": lambda lib,
    x: [x().zero_(), x().fill_(7), x().copy_(lib.ones(2)), x().copy_(lib.tensor([[1], [2]])),
    x().fill_(lib.tensor(2.0)), x().scatter_(1, lib.tensor([[0], [1]]), 9.0)],
    "other dtypes": lambda lib,
    x: [x().add_(lib.tensor(1)), x().mul_(lib.ones(2, dtype=lib.int64)), x().add_(lib.tensor(1.0, dtype=lib.float64)),
    x().sub_(lib.ones(2, 2, dtype=lib.float64))],
    "parts": lambda lib,
    x: [x().t().mul_(2), x()[0].add_(1), x()[:, 1:].zero_()],
    "operators": lambda lib,
    x: [operator.isub(x(), 1), operator.ipow(x(), 2), operator.imod(x(), 1.5), operator.ifloordiv(x(), 2)],
    "masks": lambda lib,
    x: [operator.iand(x() > 0, x() > 1), operator.ior(x() > 0, x() > 1), operator.ixor(x() > 0, x() > 1)],
}  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_methods(name: str):
    mine, other = (IN_PLACE[name](lib, lambda: sample(lib)) for lib in (tg, torch))
    for a, b in zip(mine, other, strict=True):
        close(a, b)


def test_data_and_grad_setters():
    x = tg.ones(2, requires_grad=True)
    x.data += 1
    assert x.tolist() == [2, 2]
    assert x.is_leaf
    x.data = tg.zeros(3)
    assert x.tolist() == [0, 0, 0]
    x.grad = tg.ones(3)
    x.sum().backward()
    assert x.grad.tolist() == [2, 2, 2]
    for wrong in (tg.ones(2), 3.0):
        with pytest.raises(ValueError, match=r"grad: expected None or a Tensor of shape \[3\]"):
            x.grad = wrong
    with pytest.raises(TypeError, match="data: expected a Tensor"):
        x.data = 3


# --- gradients --------------------------------------------------------------------------------------------------------

PROGRAMS: dict[str, Callable[..., Any]] = {}


def program(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f(lib, x)``, x a leaf (4,) or (4, 3): returns what is differentiated."""
    PROGRAMS[f.__name__] = f
    return f


@program
def augmented(lib, x):
    y = x * 2
    y += x
    y -= 0.5
    y *= x
    y /= 3
    y **= 2
    return y


@program
def item_assignment(lib, x):
    y = x * 2
    y[0] = 5.0
    y[1] = x[2] * x[3]
    y[2:] = 7 * x[:2]
    return y


@program
def item_augmented(lib, x):
    y = lib.zeros(4, dtype=lib.float64)
    for i in range(4):
        y[i] += x[i] * x[i]
    y[1:3] *= x[0]
    return y


@program
def buffer_filled_in_a_loop(lib, x):
    out = lib.zeros(3, 4, dtype=lib.float64)
    for i in range(3):
        out[i] = x * i + out[i - 1]
    return out


@program
def view_then_in_place_on_the_view(lib, x):
    y = x * 2
    v = y[1:]
    v *= 3
    return y


@program
def view_of_it_is_returned(lib, x):
    y = x * 2
    v = y[1:]
    v *= x[0]
    return v * y.sum()


@program
def view_taken_before_an_operation_on_the_base(lib, x):
    y = x * 2
    v, w = y[1:], y[:2]
    y *= x
    w += 1
    return v * v * w.sum()


@program
def views_of_a_constant_buffer(lib, x):
    y = lib.ones(4, dtype=lib.float64)
    v, w = y[:2], y[1:]
    y += x
    return v.sum() * w


@program
def constant_view_written_with_a_gradient(lib, x):
    y = lib.ones(4, dtype=lib.float64)
    v, w = y[:2], y[1:]
    v *= x[:2]
    assert y.requires_grad
    return w * y.sum()


@program
def chain_of_views(lib, x):
    y = (x * 2).reshape(2, 2)
    v = y.T[0]
    w = v[1:]
    w += 10 * x[0]
    v *= x[1]
    return y * y


@program
def view_of_a_view_of_a_view(lib, x):
    y = x.clone().unsqueeze(0).expand(1, 4)[0].view(2, 2).transpose(0, 1)
    y[0, 1] = x[3] ** 2
    y.mul_(2)
    return y


@program
def zero_forgets(lib, x):
    y = x * 2
    y.zero_()
    z = y + x
    z[1:3].fill_(4.0)
    return z * x


@program
def copied_over(lib, x):
    y = x * 3
    y.copy_(x * x)
    z = lib.empty(2, 4, dtype=lib.float64)
    z.copy_(y)
    return z


@program
def constant_copied_over_a_part(lib, x):
    y = x * 3
    y[:2].copy_(lib.ones(2))
    y[3] = 0
    return y * x


@program
def masked_and_indexed(lib, x):
    y = x * 2
    y[x > 0] = 1.5
    y[[0, 2]] *= x[1]
    y[lib.tensor([3, 1])] = x[:2] * 5
    return y * y


@program
def empty_parts(lib, x):
    y = (x * 2).reshape(2, 2)
    y[1:1] += 3
    y[1:1, [0, 1]] *= 2
    y[:, []] -= x[:0]
    y[y > 99] = 7.0
    return y


@program
def broadcast_assignment(lib, x):
    y = lib.zeros(3, 4, dtype=lib.float64)
    y[:] = x
    y[1:, 2] = x.sum()
    y[0] += 1
    y[:, [0, 3]] = x[:2]
    y[None, 2, ..., 1] = x[3:]
    y[1, :2] = x[None, None, 2:] * 3
    return y * y


@program
def self_assignment(lib, x):
    y = x * 2
    y[:2] = y[2:]
    y[1:] += y[:-1].clone()
    y += y
    return y * x


@program
def saved_result_not_needed(lib, x):
    y = x + 1
    y += 1  # addition needs nothing of what it made
    y.mul_(2)
    return y.exp()


@program
def detached_part(lib, x):
    y = x * 2
    y[0] = y[1].detach() * 3
    y.detach()[2] = 9.0
    return y * 4


@program
def write_without_recording(lib, x):
    y = x * 2
    with lib.no_grad():
        y[0] = 10.0
        y.mul_(3.0)
    return y + x


@program
def methods_in_place(lib, x):
    def p():
        return x * x + 0.7

    return lib.stack([
        p().sqrt_(), p().log_(), p().exp_(), p().clamp_(1.1, 2.0), p().sub_(x, alpha=0.5), p().add_(x, alpha=2),
        p().div_(x),
        p().neg_(), p().abs_(), p().tanh_(), p().sigmoid_(), p().pow_(3), p().reciprocal_(),
        p().masked_fill_(x > 0.5, 3.0),
        p().relu_(), p().mul_(x), p().floor_(), p().ceil_(), p().round_(), p().copy_(x), p().zero_(), p().fill_(2.0),
        p().scatter_(0, lib.tensor([2, 0]), x[:2] * 3),
    ])  # fmt: skip


@program
def square_in_place(lib, x):
    y = x.clone()
    for _ in range(4):
        y *= x
        y = y.view(2, 2)
        y = y.view(4)
    return y


@program
def split_parts(lib, x):
    y = x * 1
    for i, part in enumerate(y.chunk(2)):
        y = y * 1  # the parts belong to what y was
        part = part * (i + 2)
        y[i] = part.sum()
    return y


@program
def strided_view(lib, x):
    y = lib.zeros(4, 3, dtype=lib.float64)
    y[::2, 1:].T[1] += x[1:3]
    y.T[0] = x
    return y @ y.T


@pytest.mark.parametrize("name", PROGRAMS)
def test_in_place_operations(name: str):
    draw = np.random.default_rng(3)
    data = draw.normal(size=4)
    made = []
    for lib in (tg, torch):
        x = lib.tensor(data, requires_grad=True)
        y = PROGRAMS[name](lib, x)
        weights = lib.tensor(np.random.default_rng(4).normal(size=tuple(y.shape)))
        (y * weights).sum().backward()
        made.append((y, x.grad))
    for mine, other in zip(*made, strict=True):
        close(mine, other)


@pytest.mark.parametrize("lib", BOTH)
def test_leaves_are_not_changed_under_the_tape(lib: Any):
    x = lib.ones(3, requires_grad=True)
    for change in (
        lambda: x.add_(1),
        lambda: x.zero_(),
        lambda: x[0].mul_(2),
        lambda: x.__setitem__(0, 1.0),
        lambda: x.view(3, 1)[1:].copy_(lib.zeros(2, 1)),
        lambda: x.normal_(),
    ):
        with pytest.raises(RuntimeError, match=r"leaf .* in-place operation"):
            change()
    assert x.tolist() == [1.0, 1.0, 1.0]
    with lib.no_grad():
        x[0].mul_(2)
        x += 1
        x[1:] = 5.0
    assert x.tolist() == [3.0, 5.0, 5.0]
    assert x.requires_grad
    assert x.is_leaf
    x.data.zero_()
    x.detach()[0] = 1.0
    assert x.tolist() == [1.0, 0.0, 0.0]


# What changes something that a derivative needs, between the operation and backward.
WRITES: dict[str, Callable[..., Any]] = {
    "saved input": lambda lib,
    x: (a := x * 1, y := a * a, a.add_(1), y)[2:],
    "saved constant": lambda lib,
    x: (c := lib.ones(3), y := x * c, c.mul_(2), y)[2:],
    "saved output": lambda lib,
    x: (y := x.exp(), z := y * 1, y.add_(1), z)[2:],
    "own output": lambda lib,
    x: (y := x.tanh(), y.mul_(2), y)[1:],
    "through a view": lambda lib,
    x: (c := lib.ones(3), y := x * c, c[1:].zero_(), y)[2:],
    "of a view's base": lambda lib,
    x: (c := lib.ones(3), y := x[:2] * c[:2], c.zero_(), y)[2:],
    "through detach": lambda lib,
    x: (a := x * 1, y := a**2, a.detach().zero_(), y)[2:],
    "by setitem": lambda lib,
    x: (a := x * 1, y := a.sin(), a.__setitem__(0, 9.0), y)[2:],
    "under no_grad": lambda lib,
    x: (y := x**3, no_grad_write(lib, x), y)[1:],
    "by copy_": lambda lib,
    x: (c := lib.ones(3), y := x / c, c.copy_(x.detach()), y)[2:],
    "matmul": lambda lib,
    x: (w := lib.ones(3, 2), y := x @ w, w.fill_(2.0), y)[2:],
    "a leaf that is a view": lambda lib,
    x: (y := x * x.detach(), no_grad_write(lib, x), y)[1:],
}  # fmt: skip


def no_grad_write(lib: Any, x: Any) -> None:
    with lib.no_grad():
        x[0] = 7.0


@pytest.mark.parametrize("lib", BOTH)
@pytest.mark.parametrize("name", WRITES)
def test_a_change_to_what_backward_needs_is_an_error(name: str, lib: Any):
    *_, y = WRITES[name](lib, lib.ones(3, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"modified by an in-?place operation"):
        y.sum().backward()


@pytest.mark.parametrize("lib", BOTH)
def test_harmless_changes_pass(lib: Any):
    x, c, w = lib.ones(3, requires_grad=True), lib.ones(3), lib.ones(3)
    y = (x + c) * w.clone()
    c.zero_()  # a sum needs none of its terms
    w.zero_()
    other = c[:2]
    other += 1
    z = x * c.data
    z.sum().backward()
    y.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0, 1.0]
    y = x * 3
    y += 1  # a product needs its factors only
    y.sum().backward()


def test_the_version_error_names_versions():
    a = tg.ones(2, 3, requires_grad=True) * 1
    y = a.exp()
    y += 1
    y[0] = 2.0
    with pytest.raises(RuntimeError, match=r"ExpBackward0.*\[2, 3\].*version 2, expected version 0"):
        y.sum().backward()


@pytest.mark.parametrize("lib", BOTH)
def test_expanded_memory_is_not_written_to(lib: Any):
    x = lib.ones(1, 3).expand(2, 3)
    with pytest.raises((RuntimeError, ValueError), match=r"memory"):  # torch: RuntimeError, here: ValueError
        x += 1


# One step of a random program: it writes to a tensor (and returns None) or makes another, often a view.
STEPS: tuple[Callable[[Any, Any, Any], Any], ...] = (
    lambda lib, t, other: t[1:] if t.shape[0] > 1 else t * 1,
    lambda lib, t, other: t.T if t.ndim == 2 else t * 1,
    lambda lib, t, other: t * 2 + 0.1,
    lambda lib, t, other: t.reshape(-1),
    lambda lib, t, other: t.unsqueeze(0),
    lambda lib, t, other: t.detach(),
    lambda lib, t, other: lib.zeros(2, 3, dtype=lib.float64),
    lambda lib, t, other: nothing(t.mul_(1.3)),
    lambda lib, t, other: nothing(t.add_(other.sum() * 0.05)),
    lambda lib, t, other: nothing(t.__setitem__(0, t[-1] * 0.5)),
    lambda lib, t, other: nothing(t.copy_(t.sum() * 0.01)),
    lambda lib, t, other: nothing(t.__setitem__((..., 0), t[..., 0] * 1.1)),
    lambda lib, t, other: nothing(t[0].sub_(other.mean())),
)


def nothing(_: Any) -> None:
    return None


def random_program(lib: Any, seed: int) -> list[Any]:
    """The tensors that a program of random steps leaves, and the gradient of its leaf."""
    draw = np.random.default_rng(seed)
    x = lib.tensor(draw.normal(size=(4, 3)), requires_grad=True)
    tensors = [x * 1.5]
    for _ in range(draw.integers(3, 10)):
        t, other = (tensors[draw.integers(len(tensors))] for _ in range(2))
        made = STEPS[draw.integers(len(STEPS))](lib, t, other)
        tensors += [] if made is None else [made]
    total = sum((t * t).sum() * i + t.sum() for i, t in enumerate(tensors))
    total.backward()
    return [*tensors, x.grad]


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_random_programs(start: int):
    for seed in range(start, start + 50):
        try:
            expected = random_program(torch, seed)
        except RuntimeError as error:
            # torch takes a view of a constant for a leaf once its base has been written to.
            assert "a leaf Variable that requires grad" in str(error)  # noqa: PT017
            continue
        for mine, other in zip(random_program(tg, seed), expected, strict=True):
            close(mine, other)
