"""Kernels under a sanitizing interpreter: what they touch is counted, and what they may not touch is caught.

    with Sanitizer() as san:
        kernel[grid](san.own(x, "input"), san.own(y, "output"), n, BLOCK=128)
    assert san.traffic == 1

Leaving the block raises an AssertionError that lists the faults. Caught are

    out-of-bounds        touching what no array contains: raised at once, before it happens
    padding              touching bytes between the elements of a strided array
    uninitialised-read   reading an output or a workspace before anything was written there
    unwritten-output     elements of an output that are not written in the end
    write-to-input
    race                 two programs touch a byte in no order, one of them to change it
    missing-barrier      a thread touches what another one of its program has stored, and no barrier lies between
    duplicate-store      one store writes two values to the same element
    overflow             32-bit arithmetic, as on offsets, that leaves 32 bits

Programs run one after the other, each to its end, in an order that ``seed`` chooses. Races do not depend on it: they
are found by which accesses are ordered, not by which values come out (order.py).
"""

from .launch import Fault, Launch, OutOfBounds
from .sanitizer import ORDERS, Sanitizer, every_order

__all__ = ["ORDERS", "Fault", "Launch", "OutOfBounds", "Sanitizer", "every_order"]
