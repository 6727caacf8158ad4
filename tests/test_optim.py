"""Optimisers and schedules: torch's trajectories, and what may go wrong around them."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

import tilegrad as tg
from tilegrad import nn, optim
from tilegrad.optim import lr_scheduler

torch = pytest.importorskip("torch")

SHAPES = [(3, 4), (5,), ()]  # a matrix, a vector, a scalar

RULES = [
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.02, "momentum": 0.9}),
    ("SGD", {"lr": 0.02, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.001, "momentum": 0.5, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.001, "maximize": True, "foreach": False, "fused": False}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.05, "foreach": False, "fused": False}),
    ("Adam", {"lr": 0.002, "maximize": True, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True, "foreach": False, "fused": False}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.005, "alpha": 0.9, "eps": 1e-5, "centered": True, "foreach": False}),
    ("RMSprop", {"lr": 0.002, "momentum": 0.7, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.0005, "momentum": 0.5, "centered": True, "maximize": True}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.2, "eps": 1e-8}),
    ("Adagrad", {"lr": 0.1, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.01, "maximize": True, "foreach": False, "fused": False}),
]  # fmt: skip


def initial(dtype: str) -> list[np.ndarray]:
    draw = np.random.default_rng(7)
    return [np.asarray(draw.normal(size=shape), dtype) for shape in SHAPES]


def slope(p: np.ndarray, step: int) -> np.ndarray:
    """A gradient that depends on the step and on the parameter, so that an error in one step is carried on.

    It is that of a convex function: rounding must not be blown up, or float32 would prove nothing.
    """
    return (p + 0.5 * np.cos(0.3 * step + p)).astype(p.dtype)


def ours(dtype: str = "float64") -> list[tg.Tensor]:
    return [nn.Parameter(tg.tensor(a)) for a in initial(dtype)]


def advance(optimizer: Any, params: list[Any], steps: range, like: Any = None) -> None:
    """Steps of either library's optimiser, under the gradients of ``slope``."""
    for step in steps:
        for p in params:
            grad = slope(np.asarray(p.detach().numpy()), step)
            p.grad = tg.tensor(grad) if isinstance(p, tg.Tensor) else torch.tensor(grad)
        optimizer.step()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "options"), RULES, ids=[f"{n}-{'-'.join(o)}" for n, o in RULES])
def test_trajectory_is_torchs(name: str, options: dict[str, Any], dtype: str) -> None:
    mine, theirs = ours(dtype), [torch.tensor(a, requires_grad=True) for a in initial(dtype)]
    fit, reference = getattr(optim, name)(mine, **options), getattr(torch.optim, name)(theirs, **options)
    for start in range(0, 100, 10):
        advance(fit, mine, range(start, start + 10))
        advance(reference, theirs, range(start, start + 10))
        for p, q in zip(mine, theirs, strict=True):
            assert p.dtype == getattr(tg, dtype)
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=0, atol=1e-6)
    moved = [np.abs(p.detach().numpy() - a).max() for p, a in zip(mine, initial(dtype), strict=True)]
    assert min(moved) > 1e-2  # a run that goes nowhere would prove nothing


def test_training_a_network_follows_torch() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(16, 5)), draw.normal(size=(16, 2))
    theirs = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).double()
    mine = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    mine.load_state_dict({k: tg.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    fit = optim.Adam(mine.parameters(), lr=0.01)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for _ in range(100):
        fit.zero_grad()
        loss = nn.MSELoss()(mine(tg.tensor(x)), tg.tensor(y))
        loss.backward()
        fit.step()
        reference.zero_grad()
        expected = torch.nn.MSELoss()(theirs(torch.tensor(x)), torch.tensor(y))
        expected.backward()
        reference.step()
        assert abs(loss.item() - expected.item()) < 1e-9
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), RULES, ids=[f"{n}-{'-'.join(o)}" for n, o in RULES])
def test_interrupted_run_goes_on_as_if_it_had_not_been(name: str, options: dict[str, Any]) -> None:
    whole, first, second = ours(), ours(), ours()
    advance(getattr(optim, name)(whole, **options), whole, range(20))
    before = getattr(optim, name)(first, **options)
    advance(before, first, range(10))
    saved = before.state_dict()
    after = getattr(optim, name)(second, lr=123.0)
    for p, q in zip(second, first, strict=True):
        p.data = q.data.clone()
    after.load_state_dict(saved)
    kept = copy.deepcopy(saved)
    advance(after, second, range(10, 20))
    for p, q in zip(whole, second, strict=True):
        assert np.array_equal(p.detach().numpy(), q.detach().numpy())
    for i, entries in kept["state"].items():  # what was loaded is a copy: the loader's steps do not reach the lender
        for key, value in entries.items():
            assert np.array_equal(np.asarray(value), np.asarray(saved["state"][i][key]))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_half_precision_is_updated_in_float32(name: str, half: str) -> None:
    low = [nn.Parameter(tg.tensor(a, dtype=getattr(tg, half))) for a in initial("float32")]
    full = [nn.Parameter(p.detach().float()) for p in low]
    options = {"lr": 0.1, "momentum": 0.9} if name == "SGD" else {"lr": 0.1}
    fits = [getattr(optim, name)(params, **options) for params in (low, full)]
    for step in range(3):
        for p, q in zip(low, full, strict=True):
            p.grad = tg.tensor(slope(q.detach().numpy(), step)).to(p.dtype)
            q.grad, q.data = (
                p.grad.float(),
                p.detach().float(),
            )  # start each step from the same rounded values
        for fit in fits:
            fit.step()
        for p, q in zip(low, full, strict=True):
            assert p.dtype == getattr(tg, half)
            assert np.array_equal(p.detach().float().numpy(), q.detach().to(p.dtype).float().numpy())
    for _ in range(2):  # as made, and as loaded
        states = [t for entries in fits[0].state.values() for t in entries.values() if isinstance(t, tg.Tensor)]
        assert states
        assert all(t.dtype == tg.float32 for t in states)
        fits[0].load_state_dict(fits[0].state_dict())


def test_step_leaves_gradients_alone_and_counts_as_a_write() -> None:
    p, q = nn.Parameter(tg.tensor([1.0, 2.0])), nn.Parameter(tg.tensor([3.0]))
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    for maximize in (False, True):
        optim.SGD([p, q], 0.1, 0.9, weight_decay=0.5, nesterov=True, maximize=maximize).step()
        assert p.grad.tolist() == [2.0, 4.0]
    assert q.tolist() == [3.0]  # no gradient, no update, and no weight decay either
    assert q not in optim.SGD([q]).state
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        loss.backward()


def test_zero_grad_and_closure() -> None:
    p = nn.Parameter(tg.tensor([1.0]))
    fit = optim.SGD([p], lr=0.1)
    p.grad = kept = tg.tensor([5.0])
    fit.zero_grad(set_to_none=False)
    assert p.grad.tolist() == kept.tolist() == [0.0]
    fit.zero_grad()
    assert p.grad is None

    def closure() -> tg.Tensor:
        fit.zero_grad()
        loss = (p * 3).sum()
        loss.backward()
        return loss

    with tg.no_grad():  # the closure records all the same
        loss = fit.step(closure)
    assert loss.item() == pytest.approx(3.0)
    assert p.tolist() == pytest.approx([0.7])


def test_groups_have_options_of_their_own() -> None:
    a, b, c = (nn.Parameter(tg.tensor([1.0])) for _ in range(3))
    fit = optim.SGD([{"params": a, "lr": 0.5}, {"params": [b]}], lr=0.1, momentum=0.9)
    fit.add_param_group({"params": [c], "lr": 0.0})
    for p in (a, b, c):
        p.grad = tg.tensor([1.0])
    fit.step()
    assert [p.item() for p in (a, b, c)] == pytest.approx([0.5, 0.9, 1.0])
    assert [g["momentum"] for g in fit.param_groups] == [0.9] * 3
    assert fit.state_dict()["param_groups"][2]["params"] == [2]
    text = repr(optim.Adam([{"params": [a]}, {"params": [b], "lr": 0.5}]))
    shown = repr(torch.optim.Adam([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.5}]))
    only_torchs = ("capturable", "differentiable", "foreach", "fused")
    assert text.split("\n") == [s for s in shown.split("\n") if not s.strip().startswith(only_torchs)]


def leaf() -> nn.Parameter:
    return nn.Parameter(tg.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optim.SGD([], 0.1), ValueError, "SGD: expected at least one parameter, got an empty list"),
        (lambda: optim.SGD(nn.Linear(1, 1), 0.1), TypeError, "iterable of Tensors or dicts .*, got Linear"),
        (lambda: optim.SGD(leaf(), 0.1), TypeError, "got Parameter"),
        (lambda: optim.SGD([3.0], 0.1), TypeError, "expected Tensors as parameters, got float"),
        (lambda: optim.SGD([{"lr": 1}], 0.1), TypeError, "expected a dict with the key 'params', got dict"),
        (lambda: optim.SGD([{"params": {leaf()}}], 0.1), TypeError, "got a set"),
        (lambda: optim.SGD([leaf() * 2], 0.1), ValueError, "expected leaf tensors as parameters, got .*Mul"),
        (lambda: optim.SGD([{"params": [p := leaf()]}, {"params": [p]}]), ValueError, "more than one"),
        (lambda: optim.SGD([leaf()], lr=-0.1), ValueError, "SGD: expected lr >= 0, got -0.1"),
        (lambda: optim.SGD([leaf()], lr=math.nan), ValueError, "expected lr >= 0, got nan"),
        (lambda: optim.SGD([leaf()], lr="0.1"), ValueError, "expected lr >= 0, got '0.1'"),
        (lambda: optim.SGD([leaf()], momentum=-1), ValueError, "expected momentum >= 0, got -1"),
        (lambda: optim.SGD([{"params": [leaf()], "lr": -2}]), ValueError, "expected lr >= 0, got -2"),
        (lambda: optim.SGD([leaf()], nesterov=True), ValueError, "got momentum 0 and dampening 0"),
        (lambda: optim.AdamW([leaf()], betas=(0.9, 1.0)), ValueError, r"AdamW: .* betas .*, got \(0.9, 1"),
        (lambda: optim.Adam([leaf()], eps=-1.0), ValueError, "Adam: expected eps >= 0, got -1.0"),
        (lambda: optim.RMSprop([leaf()], alpha=-1), ValueError, "RMSprop: expected alpha >= 0"),
        (lambda: optim.Adagrad([leaf()], lr_decay=-1), ValueError, "Adagrad: expected lr_decay >= 0"),
        (lambda: lr_scheduler.StepLR(leaf(), 3), TypeError, "expected an Optimizer, got Parameter"),
        (lambda: lr_scheduler.StepLR(fitted(), 3, last_epoch=4), KeyError, "initial_lr"),
        (lambda: lr_scheduler.LambdaLR(fitted(), [lambda e: 1.0] * 3), ValueError, "1 lr_lamb.*got 3"),
        (lambda: lr_scheduler.LinearLR(fitted(), start_factor=0), ValueError, r"in \(0, 1\], got 0"),
        (lambda: lr_scheduler.LinearLR(fitted(), end_factor=2), ValueError, r"in \[0, 1\], got 2"),
        (lambda: lr_scheduler.OneCycleLR(fitted(), 0.1), ValueError, "expected total_steps"),
        (lambda: lr_scheduler.OneCycleLR(fitted(), 0.1, 9, pct_start=2), ValueError, "got 2"),
        (lambda: lr_scheduler.OneCycleLR(fitted(), 0.1, 9, anneal_strategy="x"), ValueError, "got 'x'"),
        (lambda: lr_scheduler.OneCycleLR(optim.Adagrad([leaf()]), 0.1, 9), ValueError, "cycle_momentum"),
        (lambda: lr_scheduler.ReduceLROnPlateau(fitted(), factor=1.5), ValueError, "factor < 1, got 1.5"),
        (lambda: lr_scheduler.ReduceLROnPlateau(fitted(), "best"), ValueError, "got 'best'"),
        (lambda: lr_scheduler.ReduceLROnPlateau(fitted(), threshold_mode="x"), ValueError, "got 'x'"),
        (lambda: lr_scheduler.ReduceLROnPlateau(fitted(), min_lr=[1, 2]), ValueError, "1 values of min_lr"),
    ],
)  # fmt: skip
def test_errors_name_what_came(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    fit = optim.SGD([p := leaf()], lr=0.1, momentum=0.9)
    p.grad = tg.tensor([1.0, 1.0])
    fit.step()
    before = copy.deepcopy(fit.state_dict())
    other = optim.SGD([leaf(), leaf()], lr=0.2)
    with pytest.raises(ValueError, match=r"expected parameter groups of sizes \[1\], got sizes \[2\]"):
        fit.load_state_dict(other.state_dict())
    wrong = {**before, "state": {0: {"momentum_buffer": tg.zeros(3)}}}
    with pytest.raises(ValueError, match=r"'momentum_buffer' of shape \[2\], got \[3\]"):
        fit.load_state_dict(wrong)
    with pytest.raises(ValueError, match="expected lr >= 0, got -1"):
        fit.load_state_dict({**before, "param_groups": [{**before["param_groups"][0], "lr": -1}]})
    assert fit.param_groups[0]["lr"] == 0.1
    assert fit.state[p]["momentum_buffer"].tolist() == before["state"][0]["momentum_buffer"].tolist()
    with pytest.warns(UserWarning, match="twice"):
        optim.SGD([p, p])


# --- schedules ---------------------------------------------------------------------------------------------


def fitted() -> optim.Optimizer:
    return optim.SGD([leaf()], lr=0.1, momentum=0.9)


def two_groups(library: Any, make: Any) -> Any:
    groups = [{"params": [make()], "lr": 0.5}, {"params": [make()]}]
    return library.SGD(groups, lr=0.1, momentum=0.9)


SCHEDULES: list[tuple[str, dict[str, Any]]] = [
    ("StepLR", {"step_size": 7, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [12, 3, 12, 20], "gamma": 0.3}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("LambdaLR", {"lr_lambda": lambda epoch: 1 / (1 + epoch)}),
    ("LambdaLR", {"lr_lambda": [lambda epoch: 0.95**epoch, lambda epoch: 1.0 + epoch]}),
    ("LinearLR", {}),
    ("LinearLR", {"start_factor": 0.2, "end_factor": 0.7, "total_iters": 11}),
    ("CosineAnnealingLR", {"T_max": 30}),
    ("CosineAnnealingLR", {"T_max": 8, "eta_min": 0.01}),  # up and down again, past the zero of the recursion
    ("OneCycleLR", {"max_lr": 0.8, "total_steps": 31}),
    ("OneCycleLR", {"max_lr": [0.8, 2.0], "epochs": 8, "steps_per_epoch": 5, "anneal_strategy": "linear",
                    "pct_start": 0.4, "div_factor": 10.0, "final_div_factor": 100.0, "base_momentum": 0.7}),
    ("OneCycleLR", {"max_lr": 0.8, "total_steps": 40, "cycle_momentum": False}),
]  # fmt: skip


def values(optimizer: Any) -> list[float]:
    return [group[key] for group in optimizer.param_groups for key in ("lr", "momentum")]


@pytest.mark.parametrize(("name", "options"), SCHEDULES, ids=[n for n, _ in SCHEDULES])
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_schedule_is_torchs(name: str, options: dict[str, Any]) -> None:
    fit, reference = two_groups(optim, leaf), two_groups(torch.optim, lambda: torch.zeros(1))
    mine = getattr(lr_scheduler, name)(fit, **options)
    theirs = getattr(torch.optim.lr_scheduler, name)(reference, **options)
    for epoch in range(30):
        np.testing.assert_allclose(values(fit), values(reference), rtol=1e-12, err_msg=f"epoch {epoch}")
        np.testing.assert_allclose(mine.get_last_lr(), theirs.get_last_lr(), rtol=1e-12)
        if epoch == 13:  # an interruption: a fresh pair takes over from what was saved
            saved = copy.deepcopy((fit.state_dict(), mine.state_dict()))
            fit = two_groups(optim, leaf)
            mine = getattr(lr_scheduler, name)(fit, **options)
            fit.load_state_dict(saved[0])
            mine.load_state_dict(saved[1])
        mine.step()
        theirs.step()


@pytest.mark.parametrize(("name", "options"), SCHEDULES[:9], ids=[n for n, _ in SCHEDULES[:9]])
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_schedule_resumes_at_an_epoch_as_torchs(name: str, options: dict[str, Any]) -> None:
    fit, reference = two_groups(optim, leaf), two_groups(torch.optim, lambda: torch.zeros(1))
    for optimizer in (fit, reference):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    mine = getattr(lr_scheduler, name)(fit, **options, last_epoch=5)
    theirs = getattr(torch.optim.lr_scheduler, name)(reference, **options, last_epoch=5)
    for _ in range(10):
        np.testing.assert_allclose(values(fit), values(reference), rtol=1e-12)
        mine.step()
        theirs.step()


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_two_schedules_compose_as_torchs() -> None:
    rates = []
    for library, make in ((optim, leaf), (torch.optim, lambda: torch.zeros(1))):
        fit = two_groups(library, make)
        both = [
            library.lr_scheduler.ExponentialLR(fit, 0.9),
            library.lr_scheduler.MultiStepLR(fit, [4, 9], 0.1),
        ]
        seen = []
        for epoch in range(15):
            for schedule in both:
                schedule.step()
            if epoch == 6:
                fit.param_groups[0]["lr"] = 7.0  # a rate set by hand is kept
            seen.append(values(fit))
        rates.append(seen)
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-12)


@pytest.mark.parametrize("options", [
    {"patience": 2, "threshold": 0.2}, {"mode": "max", "patience": 1, "threshold": 0.1},
    {"patience": 0, "factor": 0.5, "cooldown": 3}, {"mode": "max", "patience": 1},
    {"threshold_mode": "abs", "threshold": 0.1, "patience": 1}, {"patience": 0, "min_lr": [0.05, 0.01]},
    {"mode": "max", "threshold_mode": "abs", "threshold": 0.2, "patience": 3}, {"patience": 0, "eps": 0.06},
])  # fmt: skip
def test_plateau_is_torchs(options: dict[str, Any]) -> None:
    draw = np.random.default_rng(3)
    metrics = 2 + np.exp(-np.arange(30) / 4) + 0.1 * draw.normal(size=30)
    metrics[20] = math.nan
    fit, reference = two_groups(optim, leaf), two_groups(torch.optim, lambda: torch.zeros(1))
    mine = lr_scheduler.ReduceLROnPlateau(fit, **options)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(reference, **options)
    for metric in metrics:
        mine.step(tg.tensor(metric))
        theirs.step(torch.tensor(metric))
        np.testing.assert_allclose(values(fit), values(reference), rtol=1e-12)
        assert mine.get_last_lr() == pytest.approx(theirs.get_last_lr())
        again = lr_scheduler.ReduceLROnPlateau(fit, **options)
        again.load_state_dict(copy.deepcopy(mine.state_dict()))
        mine = again
    assert values(fit) != values(two_groups(optim, leaf))


def test_one_cycle_ends() -> None:
    cycle = lr_scheduler.OneCycleLR(fitted(), 0.1, total_steps=2)
    cycle.step()
    cycle.step()
    with pytest.raises(ValueError, match="expected at most 2 steps, got step 3"):
        cycle.step()
