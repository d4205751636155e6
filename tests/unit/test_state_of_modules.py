"""What a module carries beside parameters and float buffers must not change: all workers would share it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hpcopt
from hpcopt.problems.base import Draw, Share

DRAW = np.random.default_rng(0)
DATA = DRAW.standard_normal((24, 4)), DRAW.integers(0, 2, 24)


def bind(model, loss=cross_entropy, dtype=torch.float64, **keys):
    return hpcopt.Network(model, loss, DATA, workers=2, batch_size=6, **keys).bind(
        Share(range(2), 2, 0, dtype)
    )


class Stateful(nn.Module):
    """Does something beside its result, which may depend on it."""

    def __init__(self, what):
        super().__init__()
        self.linear, self.what = nn.Linear(4, 2), what
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.hidden, self.calls, self.history = torch.zeros(1), 0, []
        self.generator = torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)

    def forward(self, x):
        if self.training:
            getattr(self, self.what)(x)
        return self.linear(x) * (1 + self.hidden)

    def int_buffer(self, x):
        self.seen += len(x)

    def own_buffer(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0).to(self.mean)
        self.hidden = self.mean.sum()

    def own_average(self, x):
        self.hidden = 0.5 * self.hidden + x.detach().mean()

    def counter(self, x):
        self.calls += 1

    def keeps(self, x):
        self.history.append(float(x.sum()))

    def draws(self, x):
        torch.rand(1, generator=self.generator)

    def draws_with_numpy(self, x):
        self.numpy.random()

    def remembers_its_input(self, x):
        self.history = [x]
        self.last = x


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("int_buffer", "seen"),
        ("own_buffer", "mean"),
        ("own_average", "hidden"),
        ("counter", "calls"),
        ("keeps", "history"),
        ("draws", "generator"),
        ("draws_with_numpy", "numpy"),
    ],
)
def test_state_that_a_training_pass_changes_is_refused(what, name):
    with pytest.raises(hpcopt.UserError, match=f"a training pass changes .*{name}"):
        bind(Stateful(what))


def test_what_nothing_depends_on_may_be_remembered():
    bind(Stateful("remembers_its_input"))
    bind(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)))
    bind(nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)))


def test_state_of_a_loss_or_an_augmentation_is_refused():
    calls, draw = [], np.random.default_rng(0)

    def counting(output, target):
        calls.append(1)
        return cross_entropy(output, target)

    def noise(x):
        return x + 0.5 * torch.tensor(draw.standard_normal(x.shape))

    class Centre(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("centre", torch.zeros(2))

        def forward(self, output, target):
            self.centre = 0.9 * self.centre + output.detach().mean(0)
            return cross_entropy(output - self.centre, target)

    class Temperature(nn.Module):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return cross_entropy(output / self.t, target)

    for loss, words in ((counting, "calls"), (Centre(), "centre"), (Temperature(), "nobody trains")):
        with pytest.raises(hpcopt.UserError, match=words):
            bind(nn.Linear(4, 2), loss)
    with pytest.raises(hpcopt.UserError, match=r"random numbers in its own way|draw"):
        bind(nn.Linear(4, 2), augment=noise)


def test_complex_and_lazy_parameters_are_refused():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 2, dtype=torch.complex64))

        def forward(self, x):
            return (x.to(torch.complex64) @ self.w).abs()

    with pytest.raises(hpcopt.UserError, match="w is complex"):
        bind(Complex())
    with pytest.raises(hpcopt.UserError, match=r"0.weight has no values yet"):
        bind(nn.Sequential(nn.LazyLinear(2)))


class Scaled(nn.Module):
    """A parameter of shape ()."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.linear = nn.Parameter(torch.ones(())), nn.Linear(4, 2)

    def forward(self, x):
        return self.scale * self.linear(x)


METHODS = {
    "allreduce_sgd": hpcopt.AllreduceSGD(lr=0.1),
    "topk": hpcopt.TopK(lr=0.1, density=0.5, per_layer=True),
    "powersgd": hpcopt.PowerSGD(lr=0.1),
    "dpsgd": hpcopt.DPSGD(lr=0.1),
    "deprl": hpcopt.DePRL(lr=0.1),
    "dho2": hpcopt.DHO2(lr=0.1, largest=2, warmup=1),
    "lbfgs": hpcopt.LBFGS(),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_parameter_of_no_dimension_trains(tmp_path, method):
    problem = hpcopt.Network(Scaled(), cross_entropy, DATA, workers=2, batch_size=6, private=["linear.*"])
    hpcopt.run(METHODS[method], problem, out=tmp_path / "run", rounds=3, dtype="float64")
    losses = hpcopt.load(tmp_path / "run")["metrics/loss"].values
    assert losses[-1] < losses[0]
    hpcopt.export(tmp_path / "run", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as found:
        scale = found["scale"]
    assert scale.shape in ((), (2,))
    assert (scale != 1).all()


def test_its_gradient_is_autograds():
    problem = bind(Scaled())
    x = problem.initial()
    g = problem.layout.views(problem.gradients(x, None))["scale"]
    one = Scaled().double()
    for i in range(2):
        rows = problem._data[i].train
        (expected,) = torch.autograd.grad(cross_entropy(one(rows.features), rows.targets), [one.scale])
        assert float(g[i]) == pytest.approx(float(expected), rel=1e-12)
    assert problem.hvps(x, x, Draw(0)).isfinite().all()
