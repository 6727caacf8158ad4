"""The fused operations as Triton kernels, under the names and arguments of tilegrad's reference.

Arrays come from torch, CuPy or (interpreted) NumPy. The functions allocate nothing: outputs are handed in, and so is the
workspace that ``workspace`` lists.
"""

if __name__ != "tilegrad.kernels":
    raise ImportError(
        f"the folder {__name__!r} is the source of `tilegrad.kernels`: run pip install . and import tilegrad"
    )

import triton as _triton

if not ((3, 6) <= tuple(map(int, _triton.__version__.split(".")[:2])) < (4, 0)):
    raise ImportError(f"the Triton kernels need triton 3.6 or later of 3.x, got {_triton.__version__}")
