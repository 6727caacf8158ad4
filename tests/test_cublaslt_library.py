"""tilegrad._C against NVIDIA's own cuBLASLt: its headers, its log without a GPU, its results on one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cublaslt_cases import Case, Product, cases
from standin import cublaslt, driver

from tilegrad import _C

# --- without a GPU ----------------------------------------------------------------------------------------------------


def test_the_declarations_are_those_of_the_headers():
    command = ["g++", "-std=c++17", "-fsyntax-only", *cublaslt.includes()]
    subprocess.run([*command, str(cublaslt.HERE / "cublaslt_declarations.cpp")], check=True)


OF_THE_LOG = {"float16": "R_16F", "bfloat16": "R_16BF", "float32": "R_32F", "float64": "R_64F"}
OF_CUBLASLT = {"none": "", "bgrad_a": "EPILOGUE_BGRADB", "bgrad_b": "EPILOGUE_BGRADA"}  # "": the default is not said


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return driver.build(tmp_path_factory.mktemp("standin"))


def asked(line: str, name: str) -> dict[str, str]:
    """The fields of one descriptor in a line of cuBLASLt's log."""
    (fields,) = re.findall(rf"{name}=\[(.*?)\]", line)
    return dict(field.split("=", 1) for field in fields.split())


def test_nvidias_library_understands_what_it_is_asked(standin: Path, tmp_path: Path):
    """It checks names and sizes of attributes by itself. What it makes of their values, it says in its log."""
    (real,) = cublaslt.cublas_files("lib/libcublasLt.so.13")
    linked = ["-Wl,--no-as-needed", str(real), f"-Wl,-rpath,{real.parent}"]
    shim = cublaslt.compiled("cublaslt_without_gpu.c", tmp_path / "libshim.so", *linked)
    log = tmp_path / "log"
    program = (
        f"import sys; sys.path.insert(0, {str(cublaslt.ROOT / 'tests')!r})\n"
        "from cublaslt_cases import Host, Product, cases\n"
        "assert _C.cublaslt_load([])[0] >= 130000\n"
        "for case in cases():\n"
        "    try: _C.cublaslt_matmul(**Product(case, Host).arguments(workspace=(4096, 12345)))\n"
        "    except RuntimeError as error: assert 'Heuristic: CUBLAS_STATUS_NOT_INITIALIZED' in str(error), error\n"
        "    else: raise AssertionError('there is a GPU')\n"
        "print('all asked')"
    )
    variables = {"CUBLASLT_LOG_LEVEL": "5", "CUBLASLT_LOG_FILE": str(log), "LD_LIBRARY_PATH": str(standin.parent)}
    assert cublaslt.last_words(program, TILEGRAD_CUBLASLT=str(shim), **variables) == "all asked"
    lines = [line for line in log.read_text().splitlines() if "[cublasLtMatmulAlgoGetHeuristic] Adesc" in line]
    everything = list(cases())
    assert len(lines) == len(everything)
    for line, case in zip(lines, everything, strict=True):
        m, n, k = case.shape
        turn_a, turn_b = case.transposed
        types, out = OF_THE_LOG[case.dtype], OF_THE_LOG[case.out_dtype]
        for name, dtype, rows, columns in [
            ("Adesc", types, *((k, n) if turn_b else (n, k))),
            ("Bdesc", types, *((m, k) if turn_a else (k, m))),
            ("Cdesc", out, n, m),
            ("Ddesc", out, n, m),
        ]:
            want = {"type": dtype, "rows": str(rows), "cols": str(columns), "ld": str(rows + case.padding)}
            assert asked(line, name) == want, (case, name)
        operation = asked(line, "computeDesc")
        scale = "64F" if case.dtype == "float64" else "32F"
        assert operation["computeType"] == f"COMPUTE_{scale}" + "_FAST_TF32" * case.tf32
        assert operation["scaleType"] == f"R_{scale}"
        assert operation.get("transa", "OP_N") == ("OP_T" if turn_b else "OP_N")
        assert operation.get("transb", "OP_N") == ("OP_T" if turn_a else "OP_N")
        epilogue = OF_CUBLASLT.get(case.epilogue, f"EPILOGUE_{case.epilogue.upper()}")
        assert operation.get("epilogue", "") == epilogue
        assert ("biasPointer" in operation) == ("bias" in case.epilogue or "bgrad" in case.epilogue)
        has_aux = "AUX" in epilogue or epilogue.startswith("EPILOGUE_D")
        assert ("epilogueAuxPointer" in operation) == ("epilogueAuxLd" in operation) == has_aux
        preference = asked(line, "preference")
        assert preference["maxWorkspaceSizeinBytes"] == "12345"
        scheme = {"reductionSchemeMask": "REDUCTION_SCHEME_COMPUTE_TYPE"} if "16" in out else {}
        assert {k: v for k, v in preference.items() if k == "reductionSchemeMask"} == scheme


# --- on a GPU ---------------------------------------------------------------------------------------------------------


class OnGpu:
    """Memory of the GPU, as torch hands it out."""

    def __init__(self, content: np.ndarray) -> None:
        import torch

        self._tensor = torch.from_numpy(content.copy()).cuda()
        self.pointer = self._tensor.data_ptr()

    def bytes(self) -> np.ndarray:
        return self._tensor.cpu().numpy()


@pytest.fixture(scope="module")
def where() -> Iterator[dict[str, Any]]:
    """Where calls go: torch's current stream, with the workspace that is recommended."""
    import torch

    torch.cuda.init()
    _C.cublaslt_load([str(path) for path in cublaslt.cublas_files("lib/libcublasLt.so.13")])
    room = _C.cublaslt_workspace_bytes(0)
    workspace = torch.empty(room, dtype=torch.uint8, device="cuda")
    yield {"stream": torch.cuda.current_stream().cuda_stream, "workspace": (workspace.data_ptr(), room)}
    del workspace  # which had to be there until now


TANH = 2**-10  # the hardware's tanh.approx


@pytest.mark.gpu
@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_every_epilogue_on_a_gpu(where: dict[str, Any], case: Case):
    product = Product(case, OnGpu, **where)
    product.run()
    product.check(gelu_error=TANH)
    scratch = Product(case, OnGpu).d
    assert _C.cublaslt_tune(**product.arguments(), scratch=scratch.pointer) > 0
    product.run()
    product.check(gelu_error=TANH)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(4096, 4096, 1024), (4096, 1000, 1000), (1, 4096, 512)])
@pytest.mark.parametrize("epilogue", ["bias", "gelu_bias", "gelu_aux_bias"])
def test_large_products_on_a_gpu(where: dict[str, Any], dtype: str, shape: tuple[int, int, int], epilogue: str):
    product = Product(Case(epilogue, dtype, dtype, (False, True), shape), OnGpu, **where)
    product.run()
    product.check(gelu_error=TANH)
