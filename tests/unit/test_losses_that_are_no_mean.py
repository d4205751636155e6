"""f_n is a mean over rows: losses that are another one are handled, or told before the first round."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hpcopt import Network, UserError
from hpcopt.problems.base import Draw, Share

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((1300, 4))
Y = DRAW.integers(0, 3, 1300)
WEIGHTS = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def bound(loss, made=None, x=X, y=Y, test=None, **keys):
    recipe = Network(made or model(), loss, (x, y), test, workers=1, batch_size="full", **keys)
    return recipe.bind(Share(range(1), 1, seed=0))


def plain(loss, x=X, y=Y):
    """Loss and gradient of all rows at once, by autograd."""
    one = model().double()
    value = loss(one(torch.tensor(x)), torch.tensor(y))
    value.backward()
    return float(value.detach()), torch.cat([p.grad.ravel() for p in one.parameters()])


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (partial(cross_entropy, weight=WEIGHTS), Y),
        (nn.CrossEntropyLoss(weight=WEIGHTS), Y),
        (cross_entropy, np.where(np.arange(1300) < 900, Y, -100)),
        (lambda o, y: cross_entropy(o, y) + (o.mean(0) ** 2).sum(), Y),
        (cross_entropy, Y),
    ],
    ids=["weights", "weights in a module", "ignored rows", "of the batch", "plain"],
)
def test_a_batch_and_an_evaluation_of_many_rows_are_that_of_all_at_once(loss, y):
    problem = bound(loss, y=y)
    x = problem.initial()
    value, gradient = plain(loss, y=y)
    order = problem.layout.names
    assert order == tuple(name for name, _ in model().named_parameters())
    torch.testing.assert_close(problem.gradients(x, Draw(0))[0], gradient, rtol=1e-10, atol=1e-12)
    assert float(problem.losses(x)[0]) == pytest.approx(value, rel=1e-12)
    assert float(problem.evaluate(x).values["loss"][0]) == pytest.approx(value, rel=1e-12)


def test_a_sum_over_rows_is_refused():
    with pytest.raises(UserError, match=r'problem.loss is a sum over rows.*reduction="mean"'):
        bound(partial(cross_entropy, reduction="sum"))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda o, y: cross_entropy(o, y).detach(), "does not depend on the parameters"),
        (lambda o, y: torch.tensor(cross_entropy(o, y).item()), "does not depend on the parameters"),
        (lambda o, y: (o.argmax(1) != y).double().mean(), "does not depend on the parameters"),
        (lambda o, y: (cross_entropy(o, y), o), "one number, the mean over the batch, not a tuple"),
        (lambda o, y: {"loss": cross_entropy(o, y)}, "one number, the mean over the batch, not a dict"),
        (partial(cross_entropy, reduction="none"), "one number"),
        (lambda o, y: cross_entropy(o, y).to(torch.complex128), "one number"),
    ],
    ids=["detached", "item", "argmax", "tuple", "dict", "of each row", "complex"],
)
def test_what_is_no_loss_is_told(loss, words):
    with pytest.raises(UserError, match=words):
        bound(loss)


class Several(nn.Module):
    """Gives logits and what it has seen."""

    def __init__(self, kind):
        super().__init__()
        self.inner, self.kind = model(), kind

    def forward(self, x):
        logits = self.inner(x)
        return (logits, x) if self.kind == "tuple" else {"logits": logits, "x": x}


@pytest.mark.parametrize("kind", ["tuple", "dict"])
@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_an_output_of_several_parts_is_the_losss_business(kind, weight):
    part = 0 if kind == "tuple" else "logits"
    problem = bound(lambda o, y: cross_entropy(o[part], y, weight=weight), Several(kind), test=(X[:9], Y[:9]))
    value, gradient = plain(partial(cross_entropy, weight=weight))
    torch.testing.assert_close(problem.gradients(problem.initial())[0], gradient, rtol=1e-10, atol=1e-12)
    found = problem.evaluate(problem.initial()).values
    assert float(found["loss"][0]) == pytest.approx(value, rel=1e-12)
    assert "accuracy" not in found


@pytest.mark.parametrize("ignored", [-100, 255, 0])
def test_rows_that_the_loss_ignores_are_neither_right_nor_wrong(ignored):
    loss = nn.CrossEntropyLoss(ignore_index=ignored)
    y = np.where(np.arange(1300) % 3 == 0, ignored, np.maximum(Y, 1))
    problem = bound(loss, y=y, test=(X[:600], y[:600]))
    output = copy.deepcopy(model()).double()(torch.tensor(X[:600]))
    counted = y[:600] != ignored
    right = float((output.argmax(1).numpy() == y[:600])[counted].mean())
    measured = problem.evaluate(problem.initial())
    assert float(measured.values["accuracy"][0]) == pytest.approx(right, rel=1e-12)
    assert float(measured.weights["accuracy"][0]) == counted.sum()
    assert float(measured.values["test_loss"][0]) == pytest.approx(
        loss(output, torch.tensor(y[:600])).item(), rel=1e-12
    )
