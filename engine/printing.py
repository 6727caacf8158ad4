"""A tensor's repr, laid out as torch lays it out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .storage import get_default_dtype, to_device

PRECISION, THRESHOLD, EDGE, WIDTH = 4, 1000, 3, 80


class _Formatter:
    """How one tensor's numbers are written: all in the same width and notation (torch's ``_tensor_str._Formatter``)."""

    def __init__(self, x: np.ndarray):
        self.floating = x.dtype.kind == "f"
        self.int_mode, self.scientific, self.width = True, False, 1
        if not self.floating:
            self.width = max((len(str(v)) for v in x.reshape(-1).tolist()), default=1)
            return
        shown = x[np.isfinite(x) & (x != 0)].astype(np.float64)  # zeros, NaN and inf have no say
        if not shown.size:
            return
        high, low = np.abs(shown).max(), np.abs(shown).min()
        self.int_mode = bool((shown == np.ceil(shown)).all())
        self.scientific = bool(high / low > 1000 or high > 1e8 or low < 1e-4)
        self.width = max(len(self.text(v)) for v in shown.tolist())

    def text(self, value: Any) -> str:
        if not self.floating:
            return str(value)
        if self.scientific:
            return f"{value:.{PRECISION}e}"
        if self.int_mode:
            return f"{value:.0f}" + ("." if math.isfinite(value) else "")
        return f"{value:.{PRECISION}f}"

    def __call__(self, value: Any) -> str:
        return self.text(value).rjust(self.width)


def _summarized(x: np.ndarray) -> np.ndarray:
    """The corner elements that a long tensor shows: they alone decide the width."""
    for axis, n in enumerate(x.shape):
        if n > 2 * EDGE:
            x = np.concatenate([x.take(range(EDGE), axis), x.take(range(n - EDGE, n), axis)], axis)
    return x


def _vector(x: np.ndarray, indent: int, summarize: bool, form: _Formatter) -> str:
    per_line = max(1, (WIDTH - indent) // (form.width + 2))
    if summarize and len(x) > 2 * EDGE:
        words = [form(v) for v in x[:EDGE].tolist()] + [" ..."] + [form(v) for v in x[-EDGE:].tolist()]
    else:
        words = [form(v) for v in x.tolist()]
    lines = [", ".join(words[i : i + per_line]) for i in range(0, len(words), per_line)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def _nested(x: np.ndarray, indent: int, summarize: bool, form: _Formatter) -> str:
    if x.ndim == 0:
        return form(x.item())
    if x.ndim == 1:
        return _vector(x, indent, summarize, form)
    if summarize and len(x) > 2 * EDGE:
        parts = [_nested(v, indent + 1, summarize, form) for v in x[:EDGE]]
        parts += ["..."] + [_nested(v, indent + 1, summarize, form) for v in x[-EDGE:]]
    else:
        parts = [_nested(v, indent + 1, summarize, form) for v in x]
    return "[" + ("," + "\n" * (x.ndim - 1) + " " * (indent + 1)).join(parts) + "]"


def tensor_repr(t: Any) -> str:
    """``tensor([1., 2.], requires_grad=True)``, as torch would print it."""
    prefix = "tensor("
    x = to_device(t._array, "cpu")
    if x.dtype.kind == "V":
        x = x.astype(np.float32)  # bfloat16
    suffixes = []
    if t.device.type != "cpu":
        suffixes.append(f"device='{t.device}'")
    name = t.dtype.name
    if x.size == 0:
        if x.ndim != 1:
            suffixes.append(f"size={tuple(x.shape)}")
        if name != get_default_dtype().name:
            suffixes.append(f"dtype=tilegrad.{name}")
        body = "[]"
    else:
        if name not in (get_default_dtype().name, "int64", "bool"):
            suffixes.append(f"dtype=tilegrad.{name}")
        summarize = x.size > THRESHOLD
        body = _nested(x, len(prefix), summarize, _Formatter(_summarized(x) if summarize else x))
    if t.grad_fn is not None:
        suffixes.append(f"grad_fn=<{t.grad_fn.name()}>")
    elif t.requires_grad:
        suffixes.append("requires_grad=True")
    text = prefix + body
    line = len(text.rpartition("\n")[2]) + 2
    for suffix in suffixes:
        width = len(suffix.replace("tilegrad.", "torch."))  # lines break where torch's do
        if line + width + 2 > WIDTH:
            text += ",\n" + " " * len(prefix) + suffix
            line = len(prefix) + width
        else:
            text += ", " + suffix
            line += width + 2
    return text + ")"
