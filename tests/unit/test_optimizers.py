"""The flat updates against torch.optim, and the schedules at their ends."""

import numpy as np
import pytest
import torch

from hpcopt.config.methods.first_order import AllreduceSGDTable
from hpcopt.math.optimizers import FirstOrderUpdate, learning_rate

from .plain_steps import UPDATES, Step

CASES = {
    "sgd": ({}, lambda p: torch.optim.SGD(p, lr=0.1)),
    "decay": ({"weight_decay": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1)),
    "momentum": ({"momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "nesterov": (
        {"momentum": 0.9, "nesterov": True},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "adam": (
        {"optimizer": "adam", "weight_decay": 0.01},
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
    ),
    "adamw": (
        {"optimizer": "adamw", "weight_decay": 0.3},
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
    ),
    "clipped": (
        {"clip": 0.7, "momentum": 0.9, "weight_decay": 0.1},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_equal_torch(case):
    settings, reference = CASES[case]
    table = AllreduceSGDTable(lr=0.1, **settings)
    torch.manual_seed(0)
    x = torch.randn(9, dtype=torch.float64)
    p = x.clone().requires_grad_()
    optimizer = reference([p])
    update = FirstOrderUpdate(table)
    m, v = update.moments(x)
    for round in range(20):
        g = torch.sin(3 * x) + x
        p.grad = torch.sin(3 * p.detach()) + p.detach()
        if table.clip:
            p.grad *= min(1.0, table.clip / float(p.grad.norm()))  # torch's own adds 1e-6 to the norm
        update(x, g, m, v, round)
        optimizer.step()
    assert torch.allclose(x, p.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("settings", "round", "rate"),
    [
        ({}, 1000, 1.0),
        ({"schedule": "cosine", "lr_horizon": 100}, 0, 1.0),
        ({"schedule": "cosine", "lr_horizon": 100}, 50, 0.5),
        ({"schedule": "cosine", "lr_horizon": 100}, 100, 0.0),
        ({"schedule": "cosine", "lr_horizon": 100}, 1000, 0.0),
        ({"schedule": "exponential", "lr_decay": 0.25, "lr_decay_rounds": 10}, 5, 0.5),
        ({"schedule": "step", "lr_decay": 0.25, "lr_decay_rounds": 10}, 19, 0.25),
        ({"warmup_rounds": 10}, 0, 0.1),
        ({"warmup_rounds": 10}, 9, 1.0),
    ],
)
def test_schedules(settings, round, rate):
    assert learning_rate(AllreduceSGDTable(lr=1.0, **settings), round) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize(
    "settings", [{"clip": 0.1}, {"clip": 0.1, "optimizer": "adamw", "weight_decay": 0.1}]
)
def test_a_sparse_gradient_is_clipped_like_a_dense_one_and_stays(settings):
    """Of few entries of many, which are changed one by one."""
    update = FirstOrderUpdate(AllreduceSGDTable(lr=0.1, **settings))
    g = torch.zeros(1000, dtype=torch.float64)
    support = torch.tensor([3, 700])
    g[support] = torch.tensor([2.0, -1.0], dtype=torch.float64)
    points = []
    for given in (None, support):
        x, own = torch.ones(1000, dtype=torch.float64), g.clone()
        update(x, own, *update.moments(x), 0, given)
        assert given is None or torch.equal(own, g)
        points.append(x)
    assert torch.equal(*points)
    update(x, torch.zeros_like(g), *update.moments(x), 1)
    assert x.isfinite().all()  # a gradient of length 0


@pytest.mark.parametrize("update", UPDATES)
def test_several_points_are_each_by_itself(update):
    """In one computation, with rates of their own, parameters of any shape; against NumPy."""
    table = AllreduceSGDTable(**UPDATES[update])
    several, draw = FirstOrderUpdate(table), torch.Generator().manual_seed(0)
    shapes, etas = ((3,), (3, 2), (3, 2, 2)), torch.tensor([0.1, 0.03, 0.2], dtype=torch.float64)
    x = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    whole = torch.cat([part.reshape(3, -1) for part in x], 1).numpy()
    steps, moments = [Step(**UPDATES[update]) for _ in etas], [several.moments(part) for part in x]
    for t in range(1, 5):
        g = [t * torch.sin(3 * part) for part in x]
        rows = torch.cat([part.reshape(3, -1) for part in g], 1).numpy()
        each = zip(steps, whole, rows, etas.tolist(), strict=True)
        whole = np.stack([step(*of) for step, *of in each])
        several.step(x, g, *zip(*moments, strict=True), t, etas, rows=True)
        found = torch.cat([part.reshape(3, -1) for part in x], 1)
        np.testing.assert_allclose(found, whole, rtol=1e-12, atol=1e-14)
