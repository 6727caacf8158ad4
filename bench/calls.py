"""Random calls of the launchers: sizes, strides, dtypes and options that no case of cases.py has.

What the interpreter runs need not compile: an argument that is 1 becomes a constant there, and has other methods.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tilegrad import kernels
from tilegrad.kernels.activation import ACTIVATIONS
from tilegrad.reference import LossOptions

from .cases import softmax_backward_launcher, softmax_launcher, with_workspace
from .compiling import Failure, array, code_of, compiled, launches

SIZES = (1, 2, 3, 5, 8, 16, 31, 64, 100, 128, 1000, 1024, 4095, 4096, 8192, 20000, 32768, 50257, 128256)
DTYPES = ("bfloat16", "float16", "float32", "float64")


class Draw:
    """Arrays and options from a seed."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.dtype = self.rng.choice(DTYPES)
        self.wide = "float64" if self.dtype == "float64" else "float32"

    def either(self, a: Any, b: Any = None) -> Any:
        return a if self.rng.random() < 0.5 else b

    def sizes(self, count: int, most: int) -> list[int]:
        return [self.rng.choice([s for s in SIZES if s <= most]) for _ in range(count)]

    def array(self, *shape: int, dtype: str | None = None) -> Any:
        """Any order of dimensions, with gaps, repeated ones, and any alignment; contiguous as often as not."""
        dtype = dtype or self.dtype
        if self.rng.random() < 0.5:
            return array(*shape, dtype=dtype)
        strides, step = [0] * len(shape), 1
        for i in self.rng.sample(range(len(shape)), len(shape)):
            strides[i] = step * self.rng.choice([1, 1, 2, 3])
            step = strides[i] * shape[i]
            strides[i] *= self.rng.random() > 0.05
        return array(*shape, dtype=dtype, strides=tuple(strides), offset=self.rng.choice([0, 0, 1, 8]))

    def loss_options(self) -> LossOptions:
        smoothing, z_loss, softcap = self.either(0.1, 0.0), self.either(1e-4, 0.0), self.either(30.0, 0.0)
        reduction = self.rng.choice(["none", "sum", "mean"])
        return LossOptions(reduction, label_smoothing=smoothing, z_loss=z_loss, softcap=softcap)


Call = Callable[[], None]


def _softmax(d: Draw) -> Call:
    shape = d.sizes(d.rng.randint(1, 4), 128)
    dim, log = d.rng.randrange(len(shape)), d.either(True, False)
    shape[dim] = d.rng.choice(SIZES)
    x, y, out = d.array(*shape), d.array(*shape), d.array(*shape)
    if d.either(True):
        return lambda: softmax_launcher(x, dim, log, out=out)
    return lambda: softmax_backward_launcher(x, y, dim, log, out=out)


def _loss(d: Draw) -> Call:
    shape = d.sizes(d.rng.randint(1, 4), 64)
    axis = 1 if len(shape) > 1 else 0
    classes = shape[axis] = d.rng.choice(SIZES)
    rows, o = shape[:axis] + shape[axis + 1 :], d.loss_options()
    logits, indices = d.array(*shape), d.array(*rows, dtype=d.rng.choice(["int64", "int32", "uint8"]))
    weight, flag = d.either(array(classes, dtype=d.dtype)), array(1, dtype="bool")
    of_loss = rows if o.reduction == "none" else []
    loss, upstream, grad = array(*of_loss, dtype=d.dtype), d.array(*of_loss), array(*shape, dtype=d.dtype)
    lse = array(2, *rows, dtype=d.wide)
    which = d.rng.choice(["nll_loss", "nll_loss_backward", "cross_entropy", "cross_entropy_backward"])
    if which == "nll_loss":
        return with_workspace(which, logits, indices, weight, o, loss=loss, flag=flag)
    if which == "nll_loss_backward":
        return with_workspace(which, upstream, logits, indices, weight, o, grad=grad)
    target = d.either(d.array(*shape), indices)
    if which == "cross_entropy":
        argmax = d.either(array(*rows, dtype="int64"))
        at_once = None if of_loss else d.either(grad)
        return with_workspace(
            which, logits, target, weight, o, loss=loss, lse=lse, argmax=argmax, grad=at_once, flag=flag
        )
    of_target = None if target is indices else d.either(array(*shape, dtype=d.dtype))
    return with_workspace(which, upstream, logits, target, weight, lse, o, grad=grad, grad_target=of_target)


def _linear(d: Draw) -> Call:
    activation = d.rng.choice([None, *ACTIVATIONS])
    lead, (features, columns) = d.sizes(d.rng.randint(0, 2), 1024), d.sizes(2, 4096)
    width = 2 * columns if activation is not None and ACTIVATIONS[activation].gated else columns
    x, weight, bias = d.array(*lead, features), d.array(width, features), d.either(d.array(width))
    tf32 = d.dtype == "float32" and d.either(True, False)
    kept = array(*lead, width, dtype=d.dtype) if activation else None
    if d.either(True):
        out, pre = array(*lead, columns, dtype=d.dtype), d.either(kept)
        return lambda: kernels.linear(x, weight, bias, activation, out=out, pre=pre, tf32=tf32)
    return with_workspace(
        "linear_backward", d.array(*lead, columns), x, weight, kept, activation,
        grad_input=array(*lead, features, dtype=d.dtype), grad_weight=d.either(array(width, features, dtype=d.dtype)),
        grad_bias=d.either(array(width, dtype=d.dtype)), tf32=tf32,
    )  # fmt: skip


def _linear_cross_entropy(d: Draw) -> Call:
    (samples,), (features,), (classes,) = d.sizes(1, 4096), d.sizes(1, 4096), d.sizes(1, 128256)
    losses, o = d.rng.choice([1, 1, 2]), d.loss_options()
    each, of_weight = (samples, losses), (classes, losses, features)
    indices, probabilities = array(*each, dtype="int64"), d.array(samples, classes, losses)
    target, statistics = d.either(probabilities, indices), d.either(True)
    of_loss = each if o.reduction == "none" else ()
    return with_workspace(
        "linear_cross_entropy", d.array(samples, features), d.array(*of_weight),
        d.either(array(classes, losses, dtype=d.dtype)), target, d.either(array(classes, dtype=d.dtype)), o,
        upstream=array(*each, dtype=d.dtype) if of_loss else None, loss=array(*of_loss, dtype=d.dtype),
        lse=array(2, *each, dtype=d.wide) if statistics else None,
        argmax=array(*each, dtype="int64") if statistics else None,
        grad_input=d.either(array(samples, features, dtype=d.dtype)),
        grad_weight=d.either(array(*of_weight, dtype=d.dtype)),
        grad_bias=d.either(array(classes, losses, dtype=d.dtype)),
        grad_target=None if target is indices else d.either(array(samples, classes, losses, dtype=d.dtype)),
        flag=array(1, dtype="bool"), tf32=d.dtype == "float32" and d.either(True, False),
    )  # fmt: skip


OPERATIONS = (_softmax, _loss, _loss, _linear, _linear_cross_entropy)


def faults(seed: int, chip: str) -> list[str]:
    """What is wrong with the kernels of a random call: those that do not compile."""
    draw = Draw(seed)
    operation = draw.rng.choice(OPERATIONS)
    found = []
    for launch in launches(operation(draw), chip):
        try:
            code_of(compiled(launch, chip))
        except Failure as error:
            arguments = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
            found.append(f"seed {seed}, {chip}: {launch.kernel.__name__}({arguments}): {error}")
    return found
