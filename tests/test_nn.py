"""Modules, losses, initial values, clipping: the same programs in torch and here, with the same results."""

from __future__ import annotations

import copy
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilegrad as tg
from tilegrad import nn

torch = pytest.importorskip("torch")

BOTH = [(nn, tg), (torch.nn, torch)]  # each library's nn, and the library


def pair(*arrays: Any) -> list[tuple[Any, Any]]:
    """Each array as a tensor of either library; floating ones require grad."""
    made = []
    for a in arrays:
        a = np.asarray(a)
        grad = a.dtype.kind == "f"
        made.append((tg.tensor(a, requires_grad=grad), torch.tensor(a, requires_grad=grad)))
    return made


def same_weights(mine: nn.Module, theirs: Any) -> None:
    mine.load_state_dict({k: tg.tensor(v.numpy()) for k, v in theirs.state_dict().items()})


def close(mine: Any, theirs: Any, tolerance: float = 1e-10) -> None:
    if mine is None or theirs is None:
        assert mine is None
        assert theirs is None
        return
    assert tuple(mine.shape) == tuple(theirs.shape)
    a, b = mine.detach().numpy(), theirs.detach().numpy()
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def check_same(mine: nn.Module, theirs: Any, inputs: list[tuple[Any, Any]], *rest: tuple[Any, Any]) -> None:
    """Outputs, and gradients of inputs and parameters under a random upstream gradient."""
    y, z = mine(*[i for i, _ in (*inputs, *rest)]), theirs(*[i for _, i in (*inputs, *rest)])
    close(y, z)
    upstream = np.random.default_rng(9).normal(size=y.shape)
    y.backward(tg.tensor(upstream))
    z.backward(torch.tensor(upstream))
    for i, j in inputs:
        close(i.grad, j.grad)
    for (name, p), (other, q) in zip(mine.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        close(p.grad, q.grad)


# --- layers and containers ---------------------------------------------------------------------------------

LAYERS: list[tuple[str, Callable[[Any], Any]]] = [
    ("Linear", lambda nn: nn.Linear(6, 4)), ("Linear-nobias", lambda nn: nn.Linear(6, 3, bias=False)),
    ("Identity", lambda nn: nn.Identity(1, a=2)), ("Flatten", lambda nn: nn.Flatten()),
    ("Flatten-0", lambda nn: nn.Flatten(0, 1)), ("Dropout-0", lambda nn: nn.Dropout(0.0)),
    ("Dropout-eval", lambda nn: nn.Dropout(0.3).eval()), ("ReLU", lambda nn: nn.ReLU()),
    ("LeakyReLU", lambda nn: nn.LeakyReLU()), ("LeakyReLU-0.3", lambda nn: nn.LeakyReLU(0.3)),
    ("ELU", lambda nn: nn.ELU()), ("ELU-2", lambda nn: nn.ELU(alpha=2.0)), ("SELU", lambda nn: nn.SELU()),
    ("GELU", lambda nn: nn.GELU()), ("GELU-tanh", lambda nn: nn.GELU(approximate="tanh")),
    ("SiLU", lambda nn: nn.SiLU()), ("Mish", lambda nn: nn.Mish()), ("Sigmoid", lambda nn: nn.Sigmoid()),
    ("Tanh", lambda nn: nn.Tanh()), ("Softplus", lambda nn: nn.Softplus()),
    ("Softplus-2", lambda nn: nn.Softplus(2.0, threshold=1.0)), ("LogSigmoid", lambda nn: nn.LogSigmoid()),
    ("Softmax", lambda nn: nn.Softmax(dim=-1)), ("Softmax-0", lambda nn: nn.Softmax(0)),
    ("LogSoftmax", lambda nn: nn.LogSoftmax(dim=1)),
    ("Sequential", lambda nn: nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 2)))),
    ("OrderedDict", lambda nn: nn.Sequential(OrderedDict(a=nn.Linear(6, 2), b=nn.SELU(), c=nn.Linear(2, 2)))),
    ("empty", lambda nn: nn.Sequential()),
]  # fmt: skip


@pytest.mark.parametrize("make", [m for _, m in LAYERS], ids=[n for n, _ in LAYERS])
def test_layer_is_torchs(make: Callable[[Any], Any]) -> None:
    mine, theirs = make(nn).double(), make(torch.nn).double()
    same_weights(mine, theirs)
    assert repr(mine) == repr(theirs)
    x = np.random.default_rng(1).normal(size=(2, 3, 6)) * 3
    check_same(mine, theirs, pair(x))


def test_inplace_is_shown_as_torch_shows_it() -> None:
    for name in ("ReLU", "LeakyReLU", "ELU", "SELU", "SiLU", "Mish", "Dropout"):
        assert repr(getattr(nn, name)(inplace=True)) == repr(getattr(torch.nn, name)(inplace=True))
    assert repr(nn.Softmax()) == repr(torch.nn.Softmax())
    x = tg.tensor([-1.0, 2.0])
    assert nn.ReLU(inplace=True)(x).tolist() == [0.0, 2.0]


ACTIVATIONS = {
    "relu": "ReLU", "leaky_relu": "LeakyReLU", "elu": "ELU", "selu": "SELU", "gelu": "GELU", "silu": "SiLU",
    "mish": "Mish", "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus",
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_with_its_activation_is_the_two_modules(activation: str) -> None:
    fused = nn.Linear(6, 4, dtype=tg.float64, activation=activation)
    assert repr(fused) == f"Linear(in_features=6, out_features=4, bias=True, activation='{activation}')"
    theirs = torch.nn.Linear(6, 4, dtype=torch.float64)
    same_weights(fused, theirs)
    two = torch.nn.Sequential(OrderedDict(weight_and_bias=theirs, act=getattr(torch.nn, ACTIVATIONS[activation])()))
    x = pair(np.random.default_rng(1).normal(size=(5, 6)))
    ((i, j),) = x
    y, z = fused(i), two(j)
    close(y, z)
    upstream = np.random.default_rng(2).normal(size=(5, 4))
    y.backward(tg.tensor(upstream))
    z.backward(torch.tensor(upstream))
    for a, b in ((i, j), (fused.weight, theirs.weight), (fused.bias, theirs.bias)):
        close(a.grad, b.grad)


@pytest.mark.parametrize(("activation", "act"), [("swiglu", "silu"), ("geglu", "gelu")])
def test_gated_linear_has_gate_above_up(activation: str, act: str) -> None:
    layer = nn.Linear(6, 4, dtype=tg.float64, activation=activation)
    assert layer.weight.shape == (8, 6)
    assert layer.bias.shape == (8,)
    x = np.random.default_rng(1).normal(size=(3, 6))
    z = torch.tensor(x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    expected = getattr(torch.nn.functional, act)(z[:, :4]) * z[:, 4:]
    close(layer(tg.tensor(x)), expected)


def test_dropout_drops_and_scales_only_while_training() -> None:
    drop, x = nn.Dropout(0.25), tg.ones(200, 200)
    y = drop(x).numpy()
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / y.size)
    assert np.array_equal(drop.eval()(x).numpy(), x.numpy())
    assert not nn.Dropout(1.0)(x).numpy().any()


def build(nn: Any, library: Any) -> list[Any]:
    """Containers in use; what it returns must be the same for both libraries."""
    seq = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 3), nn.Tanh())
    out = [len(seq), repr(seq[1]), repr(seq[-1]), repr(seq[1:3]), list(seq[2:].state_dict())]
    seq[1] = nn.ELU()
    del seq[0]
    out += [
        repr(seq),
        repr(seq.append(nn.SELU())),
        repr(seq.insert(1, nn.Mish())),
        repr(seq.extend([nn.SiLU()])),
    ]
    out += [repr(seq.pop(0)), [repr(m) for m in seq]]
    del seq[1:3]
    out += [repr(seq)]
    layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    out += [repr(layers), repr(nn.ModuleList()), list(layers.state_dict()), len(layers), repr(layers[-1])]
    layers += [nn.ReLU()]
    layers.insert(1, nn.Tanh())
    layers[0] = nn.Identity()
    out += [repr(layers), repr(layers[1:]), [repr(m) for m in layers]]
    out += [repr(layers + nn.ModuleList([nn.ReLU()]))]
    table = nn.ModuleDict({"b": nn.Linear(1, 1), "a": nn.ReLU()})
    table["c"] = nn.Sequential(nn.Linear(1, 1, bias=False))
    table.update([("d", nn.Tanh())])
    out += [repr(table), list(table), "a" in table, list(table.keys()), len(table), repr(table.pop("a"))]
    del table["b"]
    out += [
        [k for k, _ in table.items()],
        [repr(v) for v in table.values()],
        [n for n, _ in table.named_modules()],
    ]
    table.clear()
    out += [len(table), len(list(nn.ModuleDict().parameters()))]
    some = nn.ParameterList([nn.Parameter(library.ones(2, 3)), library.zeros(4)])
    some.append(library.ones(1)).extend([library.ones(2)])
    some[1] = nn.Parameter(library.ones(5))
    out += [repr(some).replace("torch.", "tilegrad."), [n for n, _ in some.named_parameters()], len(some)]
    out += [tuple(some[-1].shape), [tuple(p.shape) for p in some]]
    return out


def test_containers_behave_as_torchs() -> None:
    for mine, theirs in zip(*(build(*each) for each in BOTH), strict=True):
        assert mine == theirs


def walk(nn: Any, library: Any) -> list[Any]:
    """Registration, order, sharing, deletion: what it returns must be the same for both libraries."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Linear(2, 2)
            self.scale = nn.Parameter(library.ones(2))
            self.register_buffer("mean", library.zeros(3))
            self.register_buffer("cache", library.zeros(1), persistent=False)
            self.register_buffer("none", None)
            self.register_parameter("absent", None)
            self.first = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), self.second)  # shared
            self.tied = self.scale
            self.note = "a string"

        def extra_repr(self) -> str:
            return "one line\nanother"

    net = Net()
    out = [repr(net), list(net.state_dict()), [n for n, _ in net.named_parameters()], net.note, net.absent]
    out += [[n for n, _ in net.named_parameters(remove_duplicate=False)], [n for n, _ in net.named_modules()]]
    out += [
        [n for n, _ in net.named_children()],
        [n for n, _ in net.named_buffers()],
        len(list(net.modules())),
    ]
    out += [[n for n, _ in net.named_parameters("p", recurse=False)], len(list(net.children()))]
    order: list[str] = []
    out += [net.apply(lambda m: order.append(type(m).__name__)) is net, order, len(list(net.buffers()))]
    net.mean = library.ones(3)  # stays a buffer
    net.none = library.ones(1)
    net.absent = nn.Parameter(library.ones(1))
    net.scale = None
    net.second = None
    out += [list(net.state_dict()), [n for n, _ in net.named_parameters()], repr(net)]
    net.note = nn.Linear(1, 1)  # an ordinary attribute makes room for a module, a module for a parameter
    net.first = nn.Parameter(library.ones(1))
    del net.mean, net.note
    out += [
        list(net.state_dict()),
        hasattr(net, "mean"),
        hasattr(net, "note"),
        net.training,
        net.eval().training,
    ]
    out += [net.train().training, [p.requires_grad for p in net.requires_grad_(False).parameters()]]
    return out


def test_module_registers_as_torchs() -> None:
    for mine, theirs in zip(*(walk(*each) for each in BOTH), strict=True):
        assert mine == theirs


def test_parameter_shares_memory_and_results_are_plain() -> None:
    data = tg.tensor([1.0, 2.0])
    p = nn.Parameter(data)
    assert p.requires_grad
    assert repr(p) == "Parameter containing:\ntensor([1., 2.], requires_grad=True)"
    data.mul_(2)
    assert p.tolist() == [2.0, 4.0]
    assert type(p * 2) is type(p.detach()) is type(p.data) is tg.Tensor
    (p * p).sum().backward()
    assert type(p.grad) is tg.Tensor
    loss = (p * p).sum()
    data.mul_(2)  # seen through the shared memory
    with pytest.raises(RuntimeError, match="in-place"):
        loss.backward()
    assert not nn.Parameter(tg.ones(1), requires_grad=False).requires_grad
    assert nn.Parameter().shape == (0,)


def test_copies_are_independent_and_pickle_keeps_values() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net.add_module("tied", net[0])
    net(tg.ones(1, 2)).sum().backward()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert isinstance(twin[0].weight, nn.Parameter)
        assert twin.tied is twin[0]
        assert twin[0].weight is not net[0].weight
        assert np.array_equal(twin[0].weight.detach().numpy(), net[0].weight.detach().numpy())
        with tg.no_grad():
            twin[0].weight.zero_()
        assert net[0].weight.detach().numpy().any()
    assert copy.deepcopy(net)[0].weight.grad is None  # as in torch


def test_moving_keeps_the_parameter_objects_and_takes_gradients_along() -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    net.register_buffer("mean", tg.ones(2))
    net.register_buffer("count", tg.tensor(3))
    before = list(net.parameters())
    net(tg.ones(1, 2)).sum().backward()
    for convert, dtype in ((net.double, tg.float64), (net.half, tg.float16), (net.bfloat16, tg.bfloat16)):
        assert convert() is net
        for p, q in zip(net.parameters(), before, strict=True):
            assert p is q
            assert p.dtype == p.grad.dtype == dtype
        assert net.mean.dtype == dtype
        assert net.count.dtype == tg.int64
    weight = net.float()[0].weight
    memory, version, alias = weight.data_ptr(), weight._version, weight.detach()
    assert net.cpu().to(tg.float32).to("cpu", tg.float32).to(tg.ones(1)) is net
    alias.zero_()  # where nothing had to move, memory and write counter are still shared
    assert (weight.data_ptr(), weight._version) == (memory, version + 1)
    assert net.to(dtype=tg.float64, device="cpu").mean.dtype == tg.float64
    net.float()(tg.ones(1, 2)).sum().backward()  # gradients go on accumulating
    net.zero_grad(set_to_none=False)
    assert [float(p.grad.abs().sum()) for p in before] == [0.0, 0.0]
    net.zero_grad()
    assert [p.grad for p in before] == [None, None]
    with pytest.raises(TypeError, match=r"expected a floating dtype, got tilegrad\.int64"):
        net.to(tg.int64)


def test_forward_hook_sees_and_replaces_the_output() -> None:
    layer, seen = nn.Identity(), []
    first = layer.register_forward_hook(lambda module, args, output: seen.append((module, args, output)))
    second = layer.register_forward_hook(lambda module, args, output: output * 2)
    x = tg.ones(1)
    assert layer(x).tolist() == [2.0]
    assert seen == [(layer, (x,), x)]
    first.remove()
    second.remove()
    second.remove()
    assert layer(x) is x
    assert len(seen) == 1


def test_state_dict_round_trip_and_strictness() -> None:
    a, b = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    kept = list(b.parameters())
    assert repr(b.load_state_dict(a.state_dict())) == "<All keys matched successfully>"
    assert all(p is q for p, q in zip(kept, b.parameters(), strict=True))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert np.array_equal(p.detach().numpy(), q.detach().numpy())
        assert p.data_ptr() != q.data_ptr()
    assert not a.state_dict()["0.weight"].requires_grad
    assert a.state_dict()["0.weight"].data_ptr() == a[0].weight.data_ptr()
    bad = {"0.weight": tg.ones(3, 2), "0.bias": tg.ones(4), "1.weight": 3.0, "x": tg.ones(1)}
    before = [p.tolist() for p in b.parameters()]
    with pytest.raises(RuntimeError) as caught:
        b.load_state_dict(bad)
    for part in (
        "Error(s) in loading state_dict for Sequential:", 'Missing key(s) in state_dict: "1.bias"',
        'Unexpected key(s) in state_dict: "x"', '"1.weight": expected a Tensor, got float',
        "size mismatch for 0.bias: copying a param with shape", "[4]", "the shape in current model is", "[3]",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert [p.tolist() for p in b.parameters()] == before  # nothing was changed
    keys = b.load_state_dict({"0.weight": tg.ones(3, 2, dtype=tg.float64), "x": tg.ones(1)}, strict=False)
    assert keys.missing_keys == ["0.bias", "1.weight", "1.bias"]
    assert keys.unexpected_keys == ["x"]
    assert b[0].weight.dtype == tg.float32  # converted
    assert b[0].weight.tolist() == [[1.0, 1.0]] * 3
    with pytest.raises(TypeError, match="expected a mapping from names to tensors, got list"):
        b.load_state_dict([])


class Early(nn.Module):
    def __init__(self, value: Any):
        self.value = value


def assigned(name: str, value: Any) -> None:
    setattr(nn.Linear(1, 1), name, value)


def weight() -> nn.Parameter:
    return nn.Parameter(tg.ones(2, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Early(nn.ReLU()), AttributeError, r"cannot assign module before Module.__init__\(\) call"),
        (lambda: Early(weight()), AttributeError, r"cannot assign parameter before Module.__init__\(\) call"),
        (lambda: Early(3)(1), NotImplementedError, 'missing the required "forward"'),
        (lambda: nn.Module()(1), NotImplementedError, r"Module \[Module\] is missing the required"),
        (lambda: nn.ReLU().nothing, AttributeError, "'ReLU' object has no attribute 'nothing'"),
        (lambda: Early(3).nothing, AttributeError, r"was super\(\).__init__\(\) called"),
        (lambda: delattr(nn.ReLU(), "nothing"), AttributeError, "nothing"),
        (lambda: assigned("weight", tg.ones(1, 1)), TypeError, "assign 'Tensor' as parameter 'weight'"),
        (lambda: assigned("weight", nn.ReLU()), TypeError, "cannot assign 'ReLU' as parameter 'weight'"),
        (lambda: setattr(nn.Sequential(nn.ReLU()), "0", 3), TypeError, "assign 'int' as child module '0'"),
        (lambda: setattr(nn.BCELoss(tg.ones(1)), "weight", 3), TypeError, "assign 'int' as buffer 'weight'"),
        (lambda: nn.ReLU().register_parameter("a.b", weight()), KeyError, r"got .*a\.b"),
        (lambda: nn.ReLU().register_buffer("", tg.ones(1)), KeyError, "be empty"),
        (lambda: nn.ReLU().register_buffer(3, tg.ones(1)), TypeError, "name should be a string, got int"),
        (lambda: nn.ReLU().add_module("forward", nn.ReLU()), KeyError, "'forward' already exists"),
        (lambda: nn.ReLU().add_module("a", 3), TypeError, "expected a Module as 'a', got int"),
        (lambda: nn.ReLU().register_parameter("a", weight() * 2), TypeError, "'Tensor' as parameter 'a'"),
        (lambda: nn.Parameter([1.0]), TypeError, "expected a Tensor as data, got list"),
        (lambda: nn.Parameter(tg.tensor([1])), RuntimeError, "floating"),
        (lambda: nn.ReLU().train(1), ValueError, "got 1"),
        (lambda: nn.Sequential(nn.ReLU())[1], IndexError, "1 is out of range for Sequential of length 1"),
        (lambda: nn.Sequential().insert(2, nn.ReLU()), IndexError, "index 2"),
        (lambda: nn.Sequential().insert(0, 3), TypeError, "expected a Module, got int"),
        (lambda: nn.ParameterList()[0], IndexError, "index 0"),
        (lambda: nn.Linear(1, 1, activation="cos"), ValueError, "activation None or one of relu.*'cos'"),
        (lambda: nn.Dropout(1.5), ValueError, "between 0 and 1, got 1.5"),
        (lambda: nn.GELU("erf"), ValueError, "got 'erf'"),
        (lambda: nn.MultiMarginLoss(p=3), ValueError, "expected p 1 or 2, got 3"),
        (lambda: nn.MultiMarginLoss(weight=tg.ones(1, 1)), ValueError, r"got shape \[1, 1\]"),
        (lambda: nn.LinearCrossEntropyLoss(2, 3, weight=tg.ones(2)), ValueError, r"shape \[3\], got \[2\]"),
        (lambda: nn.LinearCrossEntropyLoss(2, 3, label_smoothing=2), ValueError, r"in \[0, 1\], got 2"),
    ],
)  # fmt: skip
def test_errors_name_what_came(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# --- losses ------------------------------------------------------------------------------------------------

draw = np.random.default_rng(5)
REAL = draw.normal(size=(4, 5)) * 2
OTHER = draw.normal(size=(4, 5)) * 2
CHANCES = draw.uniform(0.05, 0.95, size=(4, 5))
SIGNS = np.sign(OTHER)
SIMPLEX = CHANCES / CHANCES.sum(1, keepdims=True)
CLASSES = np.array([3, 0, -100, 4])
ALL_KEPT = np.array([3, 0, 1, 4])
CLASS_WEIGHT = draw.uniform(0.5, 2, size=5)

# name, options (arrays become tensors), input, target
LOSSES: list[tuple[str, dict[str, Any], np.ndarray, np.ndarray]] = [
    ("CrossEntropyLoss", {}, REAL, CLASSES),
    ("CrossEntropyLoss", {"weight": CLASS_WEIGHT, "ignore_index": 3, "label_smoothing": 0.1}, REAL, ALL_KEPT),
    ("CrossEntropyLoss", {"label_smoothing": 0.2}, REAL, SIMPLEX),
    ("CrossEntropyLoss", {}, REAL[None], np.array([[0, 1, 3, 2, 1]])),
    ("NLLLoss", {}, np.log(SIMPLEX), CLASSES),
    ("NLLLoss", {"weight": CLASS_WEIGHT, "ignore_index": 0}, np.log(SIMPLEX), ALL_KEPT),
    ("MSELoss", {}, REAL, OTHER), ("L1Loss", {}, REAL, OTHER), ("SmoothL1Loss", {}, REAL, OTHER),
    ("SmoothL1Loss", {"beta": 0.4}, REAL, OTHER),
    ("HuberLoss", {}, REAL, OTHER), ("HuberLoss", {"delta": 2.5}, REAL, OTHER),
    ("KLDivLoss", {}, np.log(CHANCES), SIMPLEX),
    ("KLDivLoss", {"log_target": True}, np.log(CHANCES), np.log(SIMPLEX)),
    ("BCELoss", {}, CHANCES, (SIGNS > 0).astype(float)),
    ("BCELoss", {"weight": CLASS_WEIGHT}, CHANCES, SIMPLEX),
    ("BCEWithLogitsLoss", {}, REAL, SIMPLEX),
    ("BCEWithLogitsLoss", {"weight": CLASS_WEIGHT, "pos_weight": CLASS_WEIGHT[::-1].copy()}, REAL, SIMPLEX),
    ("HingeEmbeddingLoss", {}, REAL, SIGNS), ("HingeEmbeddingLoss", {"margin": 2.5}, REAL, SIGNS),
    ("MultiMarginLoss", {}, REAL, ALL_KEPT),
    ("MultiMarginLoss", {"p": 2, "margin": 0.7, "weight": CLASS_WEIGHT}, REAL, ALL_KEPT),
    ("SoftMarginLoss", {}, REAL, SIGNS),
]  # fmt: skip


def of(library: Any, options: dict[str, Any]) -> dict[str, Any]:
    return {k: library.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "options", "x", "target"), LOSSES, ids=[f"{n}-{'-'.join(o)}" for n, o, *_ in LOSSES])
def test_loss_is_torchs(name: str, options: dict[str, Any], x: np.ndarray, target: np.ndarray, reduction: str) -> None:
    mine, theirs = (getattr(n, name)(**of(lib, options), reduction=reduction) for n, lib in BOTH)
    assert repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    inputs = pair(x)
    check_same(mine, theirs, inputs, (tg.tensor(target), torch.tensor(target)))


@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
def test_the_old_names_of_reductions() -> None:
    for size_average in (None, True, False):
        for reduce in (None, True, False):
            for name in ("MSELoss", "CrossEntropyLoss", "BCEWithLogitsLoss"):
                mine, theirs = (getattr(n, name)(size_average=size_average, reduce=reduce) for n, _ in BOTH)
                assert mine.reduction == theirs.reduction


def test_cross_entropy_beyond_torch() -> None:
    loss = nn.CrossEntropyLoss(z_loss=0.1, softcap=3.0, return_stats=True)
    assert repr(loss) == "CrossEntropyLoss(z_loss=0.1, softcap=3.0, return_stats=True)"
    value, stats = loss(tg.tensor(REAL), tg.tensor(CLASSES))
    capped = torch.tensor(3 * np.tanh(REAL / 3))
    lse = torch.logsumexp(capped, 1)
    kept = torch.tensor(CLASSES >= 0)
    close(
        value,
        torch.nn.functional.cross_entropy(capped, torch.tensor(CLASSES)) + 0.1 * (lse[kept] ** 2).mean(),
    )
    assert np.array_equal(stats.argmax.numpy(), REAL.argmax(1))
    close(stats.lse, lse)


@pytest.mark.parametrize("options", [
    {}, {"bias": True, "weight": CLASS_WEIGHT, "label_smoothing": 0.1},
    {"ignore_index": 3, "reduction": "sum"}, {"out_features": (2,), "bias": True, "reduction": "none"},
])  # fmt: skip
def test_linear_cross_entropy_is_torchs(options: dict[str, Any]) -> None:
    mine, theirs = (n.LinearCrossEntropyLoss(6, 5, **of(lib, options), dtype=lib.float64) for n, lib in BOTH)
    same_weights(mine, theirs)
    assert repr(mine) == repr(theirs)
    target = np.array([[3, 0], [1, 1], [4, 3]])[:, : 2 if "out_features" in options else 1]
    target = target if "out_features" in options else target[:, 0]
    x = pair(np.random.default_rng(1).normal(size=(3, 6)))
    check_same(mine, theirs, x, (tg.tensor(target), torch.tensor(target)))
    assert ", z_loss=0.5\n" in repr(nn.LinearCrossEntropyLoss(6, 5, z_loss=0.5))


# --- initial values ----------------------------------------------------------------------------------------

INITS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("uniform_", (-2.0, 3.0), {}), ("normal_", (1.0, 0.5), {}), ("uniform_", (), {}), ("normal_", (), {}),
    ("xavier_uniform_", (), {}), ("xavier_uniform_", (1.7,), {}),
    ("xavier_normal_", (), {}), ("xavier_normal_", (), {"gain": 0.3}),
    ("kaiming_uniform_", (), {}), ("kaiming_uniform_", (), {"a": math.sqrt(5)}),
    ("kaiming_uniform_", (), {"mode": "fan_out", "nonlinearity": "relu"}),
    ("kaiming_uniform_", (), {"nonlinearity": "tanh"}), ("kaiming_uniform_", (), {"nonlinearity": "conv2d"}),
    ("kaiming_normal_", (), {}), ("kaiming_normal_", (0.2, "fan_out"), {}),
    ("kaiming_normal_", (), {"nonlinearity": "selu"}), ("kaiming_normal_", (), {"nonlinearity": "sigmoid"}),
]  # fmt: skip


@pytest.mark.parametrize("shape", [(30, 20), (8, 6, 3, 5)])
@pytest.mark.parametrize(("name", "args", "options"), INITS)
def test_init_has_torchs_formula(
    name: str, args: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...], monkeypatch: Any
) -> None:
    drawn: list[tuple[str, float, float]] = []
    for library in (tg, torch):
        for draw in ("uniform_", "normal_"):
            method = getattr(library.Tensor, draw)

            def spy(t: Any, a: float, b: float, generator: Any = None, draw: str = draw, method: Any = method) -> Any:
                drawn.append((draw, a, b))
                return method(t, a, b, generator=generator)

            monkeypatch.setattr(library.Tensor, draw, spy)
    mine = nn.Parameter(tg.empty(*shape, dtype=tg.float64))
    assert getattr(nn.init, name)(mine, *args, **options) is mine
    getattr(torch.nn.init, name)(torch.empty(*shape), *args, **options)
    (draw, low, high), theirs = drawn
    assert draw == theirs[0]
    assert (low, high) == pytest.approx(theirs[1:], rel=1e-12)
    values = mine.detach().numpy()
    mean, std = ((low + high) / 2, (high - low) / math.sqrt(12)) if draw == "uniform_" else (low, high)
    assert abs(values.mean() - mean) < 5 * std / math.sqrt(values.size)
    assert abs(values.std() - std) < 5 * std / math.sqrt(values.size)
    if draw == "uniform_":
        assert low <= values.min() < values.max() < high


def test_linear_starts_as_torchs() -> None:
    tg.manual_seed(0)
    for options in ({}, {"activation": "swiglu"}):
        layer = nn.Linear(300, 200, **options)
        for p in (layer.weight, layer.bias):
            values = p.detach().numpy() * math.sqrt(300)
            assert np.abs(values).max() < 1.0000001
            assert abs(values.mean()) < 5 / math.sqrt(3 * values.size)
            assert abs(values.std() - 1 / math.sqrt(3)) < 5 / math.sqrt(values.size)
    first = layer.weight.tolist()
    layer.reset_parameters()
    assert layer.weight.tolist() != first
    with pytest.warns(UserWarning, match="no-op"):
        assert nn.Linear(0, 3).bias.tolist() == [0.0] * 3


def test_constant_inits_and_errors() -> None:
    w = nn.Parameter(tg.rand(2, 3))
    assert nn.init.ones_(w).tolist() == [[1.0] * 3] * 2
    assert nn.init.zeros_(w).tolist() == [[0.0] * 3] * 2
    assert nn.init.constant_(w, 2.5).tolist() == [[2.5] * 3] * 2
    assert nn.init.eye_(w).tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    seeded = [nn.init.normal_(w, generator=tg.Generator().manual_seed(3)).tolist() for _ in range(2)]
    assert seeded[0] == seeded[1]
    for bad, message in (
        (lambda: nn.init.eye_(tg.ones(2)), r"expected a tensor of 2 dimensions, got shape \[2\]"),
        (lambda: nn.init.xavier_normal_(tg.ones(2)), r"at least 2 dimensions, got shape \[2\]"),
        (lambda: nn.init.kaiming_normal_(w, mode="out"), "expected mode 'fan_in' or 'fan_out', got 'out'"),
        (lambda: nn.init.calculate_gain("cos"), "expected one of linear, .*got 'cos'"),
        (lambda: nn.init.calculate_gain("leaky_relu", True), "slope of leaky_relu as a number, got True"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


# --- clipping and vectors ----------------------------------------------------------------------------------


def graded(library: Any, *shapes: tuple[int, ...]) -> list[Any]:
    made = [library.zeros(shape, dtype=library.float64, requires_grad=True) for shape in (*shapes, (2,))]
    for p in made[:-1]:  # the last one has no gradient
        p.grad = library.tensor(np.asarray(np.random.default_rng(p.ndim).normal(size=tuple(p.shape))))
    return made


@pytest.mark.parametrize("norm_type", [2.0, 1, 3, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_grad_norm_is_torchs(norm_type: float, max_norm: float) -> None:
    nothing = [] if norm_type == math.inf else [(0, 2)]  # torch has no maximum of nothing
    shapes = [(3, 4), (5,), (), *nothing]
    mine, theirs = graded(tg, *shapes), graded(torch, *shapes)
    total = nn.utils.clip_grad_norm_(iter(mine), max_norm, norm_type)
    close(total, torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type))
    for p, q in zip(mine, theirs, strict=True):
        close(p.grad, q.grad)
    nn.utils.clip_grad_value_(mine, 0.1)
    torch.nn.utils.clip_grad_value_(theirs, 0.1)
    for p, q in zip(mine, theirs, strict=True):
        close(p.grad, q.grad)


def test_clipping_in_half_precision_and_of_what_is_not_finite() -> None:
    p = nn.Parameter(tg.zeros(4, dtype=tg.float16))
    p.grad = tg.full((4,), 300.0, dtype=tg.float16)  # whose squares are beyond float16
    assert nn.utils.clip_grad_norm_(p, 60.0).item() == pytest.approx(600.0)
    assert p.grad.dtype == tg.float16
    assert p.grad.tolist() == pytest.approx([30.0] * 4, rel=1e-3)
    p.grad = tg.tensor([1.0, math.nan, 2.0, math.inf], dtype=tg.float16)
    with pytest.raises(RuntimeError, match=r"expected a finite norm of order 2\.0, got nan"):
        nn.utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert p.grad.tolist()[0] == 1.0
    nn.utils.clip_grad_value_(p, 1.5)
    assert p.grad.tolist()[2:] == [1.5, 1.5]
    assert math.isnan(p.grad.tolist()[1])
    assert nn.utils.clip_grad_norm_([], 1.0).item() == 0.0


def test_parameters_as_a_vector() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    vector = nn.utils.parameters_to_vector(net.parameters())
    assert vector.shape == (13,)
    vector.sum().backward()
    assert net[0].weight.grad.tolist() == [[1.0, 1.0]] * 3
    nn.utils.vector_to_parameters(tg.arange(13.0), net.parameters())
    assert net[0].weight.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert net[1].bias.tolist() == [12.0]
    with pytest.raises(ValueError, match=r"expected a vector of 13 elements, got shape \[12\]"):
        nn.utils.vector_to_parameters(tg.arange(12.0), net.parameters())
    with pytest.raises(TypeError, match="expected a Tensor, got list"):
        nn.utils.vector_to_parameters([1.0], net.parameters())
