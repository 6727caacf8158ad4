"""Who may import whom, read from the sources with `ast`: nothing of ours is imported here.

A line of the table names a module or package of tilegrad and what it may import, itself aside; the lowest
come first. An import counts wherever it stands, inside a function too; only `if TYPE_CHECKING:` is exempt, as
it never runs. A new module fails until it has a line of its own.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

OPERATIONS = "elementwise functions reductions indexing shaping"
TENSOR = f"storage gradmode rng graph autograd {OPERATIONS} tensor creation"  # as those above it see it

MAY_IMPORT = {
    # arrays
    "storage": "",
    "activations": "storage",
    "rng": "storage",
    "printing": "storage",
    "cuda": "storage rng",
    # the tape
    "gradmode": "",
    "graph": "storage gradmode _C",
    "autograd": "storage gradmode graph",
    # the ordinary operations
    "elementwise": "storage graph activations",
    "functions": "storage graph elementwise",
    "reductions": "storage graph elementwise functions",
    "indexing": "storage graph elementwise functions reductions",
    "shaping": "storage graph elementwise functions reductions indexing",
    # the Tensor
    "methods": f"storage gradmode rng {OPERATIONS}",
    "tensor": f"storage gradmode graph autograd {OPERATIONS} methods printing",
    "creation": f"storage rng {OPERATIONS} tensor",
    "checkpoint": "storage tensor creation",
    # the fused operations: on arrays, then recorded by our autograd and by torch's
    "kernels": "",
    "reference": "storage activations",
    "cpu": "storage activations reference _C",
    "cuda_views": "",
    "cublaslt": "cuda_views _C",
    "cuda_kernels": "activations reference cuda_views cublaslt _C",
    "backends": "storage activations cuda reference cpu kernels cublaslt cuda_kernels _C",
    "fused": f"storage activations graph {OPERATIONS} backends",
    "torch": "storage activations backends",
    # what users build with
    "nn.pointwise": f"{TENSOR} fused",
    "nn.functional": f"{TENSOR} activations backends fused torch nn.pointwise",
    "nn": f"{TENSOR} activations nn.functional",
    "optim": f"{TENSOR} backends nn.functional",
    "data": f"{TENSOR} nn.functional",
    "utils": "data",
    "tilegrad": f"{TENSOR} cuda backends checkpoint nn optim data utils",  # engine/__init__.py
    "cli": f"{TENSOR} activations cuda kernels backends checkpoint nn nn.functional optim data utils torch tilegrad",
}

# Imported when first needed, never because a module of ours is being imported. Only engine/torch/ imports
# torch at once, and kernels/ triton: they are themselves imported when first needed, so they are heavy too.
HEAVY = {"torch", "triton", "cupy", "cupyx", "scipy", "sklearn", "matplotlib"}
HEAVY |= {"tilegrad.torch", "tilegrad.kernels"}

# Not installed, or not under this name.
NOT_OURS = {
    "engine": "is called tilegrad",
    "kernels": "is called tilegrad.kernels",
    "tests": "is not installed",
    "bench": "is not installed",
}


class Import(NamedTuple):
    name: str  # absolute: "numpy", "tilegrad.storage.Array"
    line: int
    lazy: bool  # inside a function


def imports(tree: ast.AST, package: str, lazy: bool = False) -> Iterator[Import]:
    """Every import below ``tree``, a module of ``package``; ``from a import b`` counts as ``a.b``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            start = [*above, *([node.module] if node.module else [])]
            yield from (Import(".".join([*start, alias.name]), node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from imports(ast.Module(node.orelse, []), package, lazy)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, package, lazy or inside)


def line_of(name: str) -> str:
    """The line of the table that ``name`` (absolute) falls under: its longest prefix there."""
    parts = name.split(".")[1:]
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in MAY_IMPORT or prefix == "_C"), "tilegrad")


def violations(sources: Mapping[str, str]) -> Iterator[str]:
    """What is wrong in ``sources`` (path from the repository's root: text), each as one sentence."""
    for path, text in sources.items():
        folder, *below = Path(path).with_suffix("").parts
        module = ".".join([*{"engine": ["tilegrad"], "kernels": ["tilegrad", "kernels"]}[folder], *below])
        package = module.rpartition(".")[0]
        module = module.removesuffix(".__init__")
        mine = line_of(module)
        if mine == "tilegrad" and module != "tilegrad":
            yield f"{path}: {module} has no line in the table of {Path(__file__).name}"
            continue
        for name, line, lazy in imports(ast.parse(text), package):
            top, target = name.split(".")[0], line_of(name)
            if top in NOT_OURS:
                yield f"{path}:{line}: imports {name}, but {top} {NOT_OURS[top]}"
            elif top == "tilegrad" and target not in (mine, *MAY_IMPORT[mine].split()):
                yield f"{path}:{line}: {mine} imports {target} ({name})"
            elif mine == "kernels" and top not in {"tilegrad", "triton", *sys.stdlib_module_names}:
                yield f"{path}:{line}: kernels import {name}; they may use triton only"
            heavy = f"tilegrad.{target}" if top == "tilegrad" else top
            if heavy in HEAVY and not lazy and mine not in ("torch", "kernels"):
                yield f"{path}:{line}: imports {name} at once; do it where it is first needed"


def test_every_import_in_the_tree_is_allowed():
    files = sorted(path for folder in ("engine", "kernels") for path in ROOT.glob(f"{folder}/**/*.py"))
    assert files
    found = list(violations({path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in files}))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("engine/storage.py", "from .tensor import Tensor", "storage imports tensor"),
        ("engine/storage.py", "def f():\n    from . import tensor", "storage imports tensor"),
        ("engine/storage.py", "from tilegrad import Tensor", "storage imports tilegrad"),
        ("engine/autograd.py", "import tilegrad.functions as f", "autograd imports functions"),
        ("engine/torch/ops.py", "from ..autograd import no_grad", "torch imports autograd"),
        ("engine/torch/__init__.py", "from ..tensor import Tensor", "torch imports tensor"),
        ("engine/backends.py", "from .fused import linear", "backends imports fused"),
        ("engine/fused.py", "from .tensor import Tensor", "fused imports tensor"),
        ("engine/nn/functional.py", "from .linear import Linear", "nn.functional imports nn"),
        ("engine/optim/adam.py", "from ..nn import Module", "optim imports nn"),
        ("engine/fused.py", "try:\n    import torch\nexcept ImportError:\n    pass", "imports torch at once"),
        ("engine/storage.py", "class A:\n    import cupy.cuda", "imports cupy.cuda at once"),
        ("engine/nn/functional.py", "from ..torch import ops", "imports tilegrad.torch.ops at once"),
        ("engine/backends.py", "from tilegrad import kernels", "imports tilegrad.kernels at once"),
        ("engine/cli/main.py", "from tests.data import x", "tests is not installed"),
        ("engine/backends.py", "def f():\n    import kernels.linear", "is called tilegrad.kernels"),
        ("engine/new.py", "", "tilegrad.new has no line"),
        ("kernels/linear.py", "import torch", "kernels import torch"),
        ("kernels/linear.py", "from tilegrad.storage import Array", "kernels imports storage"),
    ],
)
def test_a_planted_violation_is_found(path: str, text: str, complaint: str):
    (found,) = violations({path: text})
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("engine/storage.py", "import numpy as np\ndef f():\n    import cupy"),
        ("engine/autograd.py", "import typing\nif typing.TYPE_CHECKING:\n    from .tensor import Tensor"),
        ("engine/__init__.py", "from .tensor import Tensor\nfrom . import nn, optim"),
        ("engine/torch/ops.py", "import torch\nfrom torch.nn import Module\nfrom .. import backends"),
        ("engine/nn/functional.py", "def f():\n    from .. import torch as binding"),
        ("engine/nn/linear.py", "from . import functional as F\nfrom .module import Module"),
        ("engine/backends.py", "def f():\n    from tilegrad import _C\n    import tilegrad.kernels.linear"),
        ("kernels/linear.py", "import math\nimport triton.language as tl\nfrom .launch import launch"),
    ],
)
def test_what_is_allowed_passes(path: str, text: str):
    assert not list(violations({path: text}))
