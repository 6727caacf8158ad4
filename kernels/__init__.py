"""The fused operations as Triton kernels, under the names and arguments of tilegrad's reference.

Arrays come from torch, CuPy or (interpreted) NumPy. The functions allocate nothing: outputs are handed in, and so is
the workspace that a function's companion, ``<function>_workspace`` with the same arguments, lists.
"""

if __name__ != "tilegrad.kernels":
    raise ImportError(
        f"the folder {__name__!r} is the source of `tilegrad.kernels`: run pip install . and import tilegrad"
    )

import triton as _triton

if not ((3, 6) <= tuple(map(int, _triton.__version__.split(".")[:2])) < (4, 0)):
    raise ImportError(f"the Triton kernels need triton 3.6 or later of 3.x, got {_triton.__version__}")

from .cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_backward_workspace,
    cross_entropy_workspace,
)
from .linear import linear, linear_backward, linear_backward_workspace
from .linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_workspace
from .log_softmax import softmax, softmax_backward
from .nll_loss import nll_loss, nll_loss_backward, nll_loss_backward_workspace, nll_loss_workspace
from .scale import scale
