"""The course programs in examples/ train on tilegrad, and with their imports changed back they are torch programs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tilegrad as tg

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_trains_on_tilegrad_and_is_a_torch_program(path: Path, tmp_path: Path) -> None:
    source = path.read_text()
    assert "tilegrad" in source
    for name, text in (
        ("tilegrad", source),
        ("torch", source.replace("import tilegrad as torch", "import torch").replace("tilegrad", "torch")),
    ):
        program = tmp_path / f"{name}_program.py"
        program.write_text(text)
        done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"on {name}: {done.stderr}"
        assert done.stderr == ""
        assert done.stdout


def test_the_snippet_of_torchs_own_tutorial() -> None:
    torch = tg
    x = torch.ones(5)
    y = torch.zeros(3)
    w = torch.randn(5, 3, requires_grad=True)
    b = torch.randn(3, requires_grad=True)
    z = torch.matmul(x, w) + b
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y)
    loss.backward()
    expected = torch.sigmoid(z.detach()) / 3
    assert torch.allclose(b.grad, expected)
    assert torch.allclose(w.grad, expected.expand(5, 3))
