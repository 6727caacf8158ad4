"""Device "cuda" on a double of CuPy: the same programs there and on "cpu" give the same results, and use nothing that
CuPy does not have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tilegrad as tg
import tilegrad.nn.functional as F
from tilegrad import graph, nn, optim
from tilegrad.autograd import gradcheck

pytest.importorskip("cupy")
import cupy_double


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, module in cupy_double.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(graph, "_stand_ins", {})
    monkeypatch.setattr(tg.default_generator, "_streams", {})
    monkeypatch.setattr(tg.backends, "_flags", {})
    with tg.backend(
        "reference"
    ):  # what "auto" would choose here, the Triton kernels, needs more of a GPU than a double
        yield


def same(here: Any, there: Any) -> None:
    """Equal, and each on its own device; tuples part by part."""
    if isinstance(here, (tuple, list)):
        for a, b in zip(here, there, strict=True):
            same(a, b)
    elif isinstance(here, tg.Tensor):
        assert there.is_cuda
        assert type(there._array) is cupy_double.ndarray
        assert here.dtype == there.dtype
        assert here.shape == there.shape
        a, b = here.detach().double().numpy(), there.detach().cpu().double().numpy()
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    else:
        assert here == there


def both(program: Callable[..., Any], *arrays: np.ndarray) -> None:
    """``program(device, *tensors)`` on the CPU, the current GPU and another one: its results, and the gradients of the
    floating tensors."""
    found = []
    for device in ("cpu", "cuda", "cuda:1"):
        leaves = [tg.tensor(a, device=device, requires_grad=a.dtype.kind == "f") for a in arrays]
        made = program(device, *leaves)
        outputs = [
            o
            for o in (made if isinstance(made, (tuple, list)) else [made])
            if isinstance(o, tg.Tensor) and o.requires_grad
        ]
        for i, o in enumerate(outputs):
            upstream = tg.tensor(np.random.default_rng(i).normal(size=o.shape), device=device).to(o.dtype)
            o.backward(upstream, retain_graph=True)
        found.append([made, *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    for there in found[1:]:
        assert len(found[0]) == len(there)
        same(found[0], there)


draw = np.random.default_rng(0)
x, y, p = draw.normal(size=(3, 4)), draw.normal(size=(3, 4)), np.abs(draw.normal(size=(3, 4))) + 0.1
row, square, cube = draw.normal(size=4), draw.normal(size=(4, 4)), draw.normal(size=(2, 3, 4))
whole, index = np.arange(12).reshape(3, 4) - 4, np.array([[0, 2, 1, 1], [1, 1, 0, 2]])

ELEMENTWISE = (
    "neg", "abs", "sign", "exp", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "square", "reciprocal",
    "sin", "cos", "tan", "tanh", "sigmoid", "relu", "floor", "ceil", "round", "isnan", "isinf", "isfinite",
    "logical_not", "sum", "mean", "var", "std", "prod", "max", "min", "amax", "amin", "norm", "argmax", "argmin",
    "all", "any", "flatten", "clone",
)  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_of_one_tensor(name: str):
    both(lambda device, t: getattr(tg, name)(t), p)
    if name not in ("mean", "var", "std", "norm"):
        both(lambda device, t: getattr(t, name)(), whole)
    both(lambda device, t: getattr(tg, name)(t.T[1:]), p)
    both(lambda device, t: getattr(tg, name)(t.half()), p)
    both(lambda device, t: getattr(tg, name)(t.bfloat16()), p)


PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "arithmetic": (lambda device, a, b: [a + b, a - b, a * b, a / b, 2 - a, 1 / b, a**2, b**a, 2**a, a + 1, a % 0.7,
        a // 0.3, -a, abs(a)], (x, p)),
    "broadcasting": (lambda device, a, b: [a + b, a * b, a - a[:, :1], b / a.exp(), a.sum() * b], (x, row)),
    "comparison": (lambda device, a, b: [a > b, a >= 0, a == a, a != b, a > 0, (a > 0) & (b > 0), (a > 0) | (b > 0),
        (a > 0) ^ (b > 0), ~(a > 0)], (x, y)),
    "max and min": (lambda device, a, b: [tg.maximum(a, b), tg.minimum(a, 0.1), a.clamp(-0.5, 0.5), a.clamp(min=b),
        tg.where(a > 0, a, b), tg.where(a > 0, a, 1.5), tg.where(a > 0, 1, 2.5)], (x, y)),
    "reductions": (lambda device, a: [a.sum(0), a.sum((0, 1)), a.mean(1, keepdim=True), a.var(0),
        a.std(unbiased=False), a.prod(1), a.cumsum(1), a.amax((0, 1)), a.logsumexp(1), a.norm(dim=0), a.norm(3),
        a.norm(float("inf")), a.max(1).values, a.min(0, keepdim=True).indices, a.argmax(1), a.any(0)], (x,)),
    "reductions of ints": (lambda device, a: [a.sum(), a.sum(0), a.prod(1), a.cumsum(0), a.max(), a.bool().sum(),
        a.float().mean(), (a > 0).any(1), a.argmin(0)], (whole,)),
    "0-d": (lambda device, a: [a.sum(), a.sum().exp(), a.sum() * a.sum(), a.mean().sum(), a.sum().max(),
        a.sum().reshape(1), a.sum().item(), a.sum().cumsum(0)], (x,)),
    "matmul": (lambda device, a, b, c: [a @ b, a.T @ a, c @ b, a @ b[0], b[0] @ b[0], c @ c.mT, tg.mm(a, b),
        b[1].outer(a[0]), tg.bmm(c, c.transpose(1, 2))], (x, square, cube)),
    "shapes": (lambda device, a: [a.reshape(4, 6), a.view(-1), a.permute(2, 0, 1), a.transpose(0, 2), a.mT,
        a.flatten(1), a.unsqueeze(1).squeeze(), a[:1].expand(5, 3, 4), a.repeat(1, 2, 1), tg.cat([a, a], 1),
        tg.stack([a, a], -1), a.split(2, -1), a.chunk(3, 1), a.unbind(), a.flip(0, 2), a.tril(), a.movedim(0, -1)],
        (cube,)),
    "indexing": (lambda device, a: [a[1], a[-1, 2], a[1:, ::2], a[..., 0], a[None, :, 1], a[[0, 2]], a[:, [1, 1, 3]],
        a[a > 0], a[[0, 1], [2, 3]], a[np.array([2, 0])], a[tg.tensor([1, 0], device=device)], a[tg.tensor(1)],
        list(a)], (x,)),
    "gather": (lambda device, a, i: [a.gather(0, i), a.index_select(1, i[0]), a.scatter(0, i[:1], 2.0),
        a.masked_fill(a > 0, 3.0), a.masked_select(a > 0), a.scatter(0, i[:1], a[1:2] * 2)], (x, index)),
    "sorting": (lambda device, a: [a.sort().values, a.sort(0, descending=True).indices, a.topk(2).values, a.argsort(),
        tg.topk(a, 1, 0, largest=False).indices], (x,)),
    "counting": (lambda device, a: [tg.bincount(a, minlength=20), tg.one_hot(a, 9), tg.nonzero(a), tg.where(a > 2)[0],
        a.nonzero()], (whole[2],)),
    "dtypes": (lambda device, a: [a.half() * 2, a.bfloat16() + a.bfloat16(), a.float() + a.half(), a.half().sum(),
        a.bfloat16().mean(0), a.long(), a.bool(), a.half() @ a.half().T, a.bfloat16()[0].exp(), a.half()[[0, 0]] * 1,
        a.bfloat16()[[0, 0]] * 1], (x,)),
    "likes": (lambda device, a: [tg.zeros_like(a), tg.ones_like(a, dtype=tg.int64), tg.full_like(a, 3),
        tg.empty_like(a).shape, a.new_zeros(2), a.new_full((2,), 1.5), tg.rand_like(a).shape, tg.randn_like(a).dtype],
        (x,)),
    "unrecorded": (lambda device, a: [a.tolist(), a.detach().sum().item(), len(a), float(a[0, 0]), bool(a[0, 0] > 9),
        a.allclose(a), tg.equal(a, a), a.stride(), a.is_contiguous(), str(a.dtype), a.T.is_contiguous(),
        a.is_cuda == device.startswith("cuda")], (x,)),
    "kept numbers": (lambda device, a: [a * tg.tensor(2.0), tg.tensor(2.0) + a, a * np.float64(3)], (x,)),
    # 0-d tensors of the CPU count as numbers
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str):
    program, arrays = PROGRAMS[name]
    both(lambda *given: flat(program(*given)), *arrays)


def flat(parts: Any) -> list[Any]:
    return [
        q
        for part in parts
        for q in (flat(part) if isinstance(part, tuple) and not isinstance(part, tg.Size) else [part])
    ]


def test_in_place():
    def program(device: str, a: Any) -> Any:
        b = a * 2
        b += 1
        b[0] *= 3
        view = b[1:, ::2]
        view *= a[:2, :2]
        b[2, 1] = a.sum()
        b[[0, 2]] = b[[2, 0]] * 2
        other = b.T[0].clone()
        b.mul_(a)
        out = tg.zeros(3, dtype=tg.float64, device=device)
        for i in range(3):
            out[i] += other[i] ** 2
        b[b > 1] = 0.5
        b[1, :, None] = a[0, :, None]
        with tg.no_grad():
            b[0].zero_()
            b[0, 1:].copy_(tg.ones(3))
        b.clamp_(-5, 5)
        return b, out

    both(program, x)
    a = tg.ones(3, device="cuda", requires_grad=True) * 1
    z = a * a
    a.add_(1)
    with pytest.raises(RuntimeError, match="version 1, expected version 0"):
        z.sum().backward()
    with pytest.raises(RuntimeError, match="leaf"):
        tg.ones(3, device="cuda", requires_grad=True)[0].zero_()


def test_creation():
    made = {
        "zeros": tg.zeros(2, 3, device="cuda"), "ones": tg.ones(2, dtype=tg.int64, device="cuda"),
        "full": tg.full((2,), 1.5, device="cuda"), "empty": tg.empty(2, device="cuda"),
        "arange": tg.arange(5, device="cuda"), "linspace": tg.linspace(0, 1, 3, device="cuda"),
        "eye": tg.eye(3, device="cuda"), "tensor": tg.tensor([[1, 2]], device="cuda"),
        "randint": tg.randint(0, 5, (9,), device="cuda"),
        "rand": tg.rand(2, 2, device="cuda"), "randn": tg.randn(3, device="cuda", dtype=tg.float16),
        "randperm": tg.randperm(6, device="cuda"), "as_tensor": tg.as_tensor(np.ones(2), device="cuda"),
        "bernoulli": tg.bernoulli(tg.full((5,), 0.5, device="cuda")),
        "multinomial": tg.multinomial(tg.ones(4, device="cuda"), 2),
        "uniform_": tg.empty(3, device="cuda").uniform_(1, 2), "normal_": tg.empty(3, device="cuda").normal_(),
    }  # fmt: skip
    for name, t in made.items():
        assert str(t.device) == "cuda:0", name
        assert t.is_cuda
    assert made["linspace"].tolist() == [0.0, 0.5, 1.0]
    assert sorted(made["randperm"].tolist()) == list(range(6))
    assert repr(made["arange"]) == "tensor([0, 1, 2, 3, 4], device='cuda:0')"
    assert (
        repr(tg.ones(2, device="cuda", requires_grad=True)) == "tensor([1., 1.], device='cuda:0', requires_grad=True)"
    )
    tg.manual_seed(3)
    first = tg.randn(4, device="cuda")
    tg.manual_seed(3)
    assert first.tolist() == tg.randn(4, device="cuda").tolist()


def test_devices():
    assert tg.cuda.is_available()
    assert tg.cuda.device_count() == 2
    tg.cuda.synchronize()
    a = tg.tensor([1.0, 2.0], requires_grad=True)
    b = a.to("cuda")
    assert b.device == tg.device("cuda", 0)
    assert b.to("cuda") is b
    assert b.to("cuda:0") is b
    c = b.to("cuda:1")
    assert str((c * 2).device) == "cuda:1"
    ((c * c).cpu() * a).sum().backward()
    assert a.grad.tolist() == [3.0, 12.0]
    assert str(a.grad.device) == "cpu"
    assert str(tg.zeros(2, device="cuda:1").device) == "cuda:1"
    assert str(tg.zeros_like(c).device) == "cuda:1"
    leaf = tg.ones(2, device="cuda:1", requires_grad=True)
    (leaf.exp().sum() * 2).backward()
    assert str(leaf.grad.device) == "cuda:1"
    y = leaf * 2
    y[0] = y[1].clone() * leaf[0]
    y.prod().backward()
    assert str(leaf.grad.device) == "cuda:1"
    for f in (lambda: a + b, lambda: a @ b, lambda: b + c, lambda: tg.cat([a, b]), lambda: tg.where(b > 0, b, a)):
        with pytest.raises(ValueError, match=r"devices?"):
            f()
    with pytest.raises(TypeError, match=r"cuda:0.*cpu\(\)"):
        b.detach().numpy()
    with pytest.raises(RuntimeError, match="2 CUDA devices"):
        a.to("cuda:2")
    raw = b.detach()._array
    assert tg.from_dlpack(raw)._array._np is raw._np
    assert tg.from_numpy(raw)._array is raw
    assert b.__dlpack_device__ is not None
    assert b.detach().__dlpack_device__() == (2, 0)
    assert [name for name, usable, _ in tg.storage.devices() if usable] == ["cpu", "cuda:0", "cuda:1"]


def test_autograd():
    def program(device: str, a: Any, b: Any) -> Any:
        loss = ((a @ b).tanh() ** 2).mean() + a[:, 0].exp().sum()
        (g,) = tg.autograd.grad(loss, a, create_graph=True)
        h = (g * g).sum()
        return tg.autograd.grad(h, [a, b])

    both(program, x, square)
    a = tg.tensor(x, device="cuda", requires_grad=True)
    assert gradcheck(lambda a: (a.sigmoid().sum(0), a[[0, 0, 1]].prod()), a)

    class Cube(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad

    both(lambda device, a: Cube.apply(a), x)


target, weight, bias = np.array([1, 3, 0]), draw.normal(size=(5, 4)), draw.normal(size=5)
FUSED: dict[str, Callable[..., Any]] = {
    **{f"linear {act}": (lambda device, a, w, b, act=act: F.linear(a, w, b, activation=act)) for act in (None, "relu",
    "leaky_relu", "elu", "selu", "gelu", "gelu_tanh", "silu", "mish", "sigmoid", "tanh", "softplus", "relu2")},
    "linear swiglu": lambda device,
    a,
    w,
    b: F.linear(a, w[:4], b[:4], activation="swiglu"),
    "softmax": lambda device,
    a,
    w,
    b: [F.softmax(a, 1), F.log_softmax(a, 0), F.softmax(a.half(), -1)],
    "cross_entropy": lambda device,
    a,
    w,
    b: [F.cross_entropy(a, tg.tensor(target, device=device), **k) for k in ({}, {"reduction": "none"},
    {"reduction": "sum", "label_smoothing": 0.1}, {"weight": b[:4].detach().exp(), "ignore_index": 3},
    {"z_loss": 0.1, "softcap": 5.0})],
    "class probabilities": lambda device,
    a,
    w,
    b: [F.cross_entropy(a, a.detach().softmax(1)), F.cross_entropy(a, (a * 2).softmax(1), reduction="none")],
    "nll_loss": lambda device,
    a,
    w,
    b: [F.nll_loss(F.log_softmax(a, 1), tg.tensor(target, device=device), reduction=r) for r in ("mean", "sum",
    "none")],
    "linear_cross_entropy": lambda device,
    a,
    w,
    b: [F.linear_cross_entropy(a, w, tg.tensor(target, device=device), linear_bias=b, reduction=r) for r in ("mean",
    "none")],
    "stats": lambda device,
    a,
    w,
    b: list(F.cross_entropy(a, tg.tensor(target, device=device), return_stats=True)[1]),
    "activations": lambda device,
    a,
    w,
    b: [f(a) for f in (F.relu, F.gelu, F.silu, F.elu, F.selu, F.leaky_relu, F.softplus, F.mish, F.logsigmoid,
    F.hardtanh, F.normalize)],
    "losses": lambda device,
    a,
    w,
    b: [f(a, a.detach().flip(0)) for f in (F.mse_loss, F.l1_loss, F.smooth_l1_loss,
    F.huber_loss)] + [F.binary_cross_entropy_with_logits(a, (a > 0).double())],
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_fused_functions(name: str):
    both(FUSED[name], x, weight, bias)


def test_a_bad_target_is_found_when_asked():
    logits = tg.tensor(x, device="cuda", requires_grad=True)
    loss = F.cross_entropy(logits, tg.tensor([0, 9, 1], device="cuda"), reduction="none")
    assert np.isnan(loss.tolist()).tolist() == [False, True, False]
    with pytest.raises(IndexError, match="cuda:0"):
        tg.synchronize()
    tg.synchronize()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_training(optimizer: str):
    def trained(device: str) -> list[float]:
        draw = np.random.default_rng(5)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 3))
        model.load_state_dict(
            {k: tg.tensor(draw.normal(size=v.shape) * 0.5, dtype=tg.float32) for k, v in model.state_dict().items()}
        )
        model.to(device)
        assert all(str(q.device).startswith(device) for q in model.parameters())
        inputs = tg.tensor(draw.normal(size=(20, 4)), dtype=tg.float32, device=device)
        classes = tg.tensor(draw.integers(0, 3, 20), device=device)
        steps = getattr(optim, optimizer)(model.parameters(), lr=0.05)
        losses = []
        for _ in range(15):
            loss = nn.CrossEntropyLoss()(model(inputs), classes)
            steps.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            steps.step()
            losses.append(loss.item())
        losses.append((model(inputs).argmax(1) == classes).float().mean().item())
        return losses

    here, there = trained("cpu"), trained("cuda")
    assert here[-2] < 0.95 * here[0]
    np.testing.assert_allclose(here, there, rtol=1e-5)


def test_the_double_is_as_strict_as_cupy():
    import cupy as cp

    a = cp.arange(6.0).reshape(2, 3)
    assert type(a.sum()) is cp.ndarray
    assert a[0].base is a.base
    assert a[0, 0].shape == ()
    for wrong in (
        lambda: np.asarray(a), lambda: np.exp(a), lambda: np.sum(a), lambda: a + np.ones(3), lambda: np.ones(3) + a,
        lambda: cp.exp(np.ones(2)),
        lambda: a[np.array([0])], lambda: cp.add(a, a, where=a > 0), lambda: cp.sum(a, initial=3),
        lambda: a.__setitem__(0, np.ones(3)),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            wrong()
    for missing in (
        lambda: cp.copyto_all,
        lambda: a.setfield,
        lambda: cp.random.default_rng(0).shuffle_all,
        lambda: cp.spacing,
    ):
        with pytest.raises(AttributeError):
            missing()
    with cp.cuda.Device(1), pytest.raises(ValueError, match="device"):
        a + 1
    with pytest.raises(ValueError, match="device"):
        a + cp.ndarray._of(a._np, None, 1)
