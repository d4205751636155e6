"""Networks: against plain autograd, buffers, randomness, evaluation, errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from hpcopt.config import from_tables
from hpcopt.config.problems import NetworkTable
from hpcopt.errors import UserError
from hpcopt.problems.base import Draw, Share
from hpcopt.problems.data import open_dataset
from hpcopt.problems.models import ResNet18, build
from hpcopt.problems.network import Network

GENERATOR = np.random.default_rng(0)
TRAIN = GENERATOR.standard_normal((40, 1, 8, 8)).astype(np.float32), GENERATOR.integers(0, 5, 40)
TEST = GENERATOR.standard_normal((11, 1, 8, 8)).astype(np.float32), GENERATOR.integers(0, 5, 11)


def bind(recipe: Network, dtype: torch.dtype = torch.float64, seed: int = 7):
    return recipe.bind(Share(range(recipe.workers), recipe.workers, seed, dtype))


def mlp() -> nn.Module:
    return build("mlp", (1, 8, 8), 5, (6,))


@pytest.mark.parametrize("name", ["mlp", "cnn", "alexnet", "resnet18"])
def test_gradient_is_plain_autograds(name: str) -> None:
    size = 16 if name == "alexnet" else 8
    train = GENERATOR.standard_normal((6, 1, size, size)), GENERATOR.integers(0, 5, 6)
    model = ResNet18((1, 8, 8), 5, width=2) if name == "resnet18" else build(name, (1, size, size), 5)
    plain = copy.deepcopy(model).double()
    problem = bind(Network(model, cross_entropy, train, workers=1, batch_size="full", regularisation=0.3))
    gradient = problem.gradients(problem.initial())
    x, y = torch.tensor(train[0]), torch.tensor(train[1])
    penalty = sum(p.square().sum() for p in plain.parameters()) * 0.15
    (cross_entropy(plain(x), y) + penalty).backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    for key, value in problem.layout.views(gradient[0]).items():
        assert torch.allclose(value, expected[key], atol=1e-10), key
    assert problem.layout.names[problem.layout.n_shared].startswith("head.")
    running = torch.cat([torch.zeros(0), *(b.ravel() for b in plain.buffers() if b.is_floating_point())])
    assert torch.allclose(problem.buffers[0], running.double())
    flat = x.flatten(1)
    assert torch.allclose(plain(flat), plain(x))


def test_parameters_are_views_of_the_model_and_gradients_of_the_result() -> None:
    problem = bind(Network(mlp(), cross_entropy, TRAIN, workers=2))
    x, out = problem.initial(), torch.zeros(problem.dim, dtype=torch.float64)
    seen = []

    def watch(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        parameters = list(problem._module.module.parameters())
        memory = range(x.data_ptr(), x.data_ptr() + x.nbytes)
        result = range(out.data_ptr(), out.data_ptr() + out.nbytes)
        seen.append(all(p.data_ptr() in memory and p.grad.data_ptr() in result for p in parameters))
        return cross_entropy(output, target)

    problem._objective = watch
    problem.total_gradient(x, Draw(0), out=out)
    assert seen == [True, True]


def test_batch_norm_statistics_belong_to_the_worker_and_change_in_gradients_only() -> None:
    problem = bind(Network(ResNet18((1, 8, 8), 5, width=2), cross_entropy, TRAIN, TEST, workers=2))
    x, start = problem.initial(), problem.buffers.clone()
    assert start.shape[1] > 0
    problem.losses(x, Draw(0))
    problem.hvps(x, x, Draw(0))
    problem.evaluate(x)
    assert torch.equal(problem.buffers, start)
    problem.gradients(x, Draw(0))
    assert not torch.equal(problem.buffers[0], problem.buffers[1])
    mean = problem.buffers.mean(0)
    own, common = problem.evaluate(x), problem.evaluate(x, mean)
    assert not torch.equal(own.values["loss"], common.values["loss"])
    problem.buffers[:] = mean
    assert torch.equal(problem.evaluate(x).values["loss"], common.values["loss"])


def test_dropout_depends_on_worker_and_draw_alone() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(nn.functional.dropout(x.flatten(1), 0.5, self.training))

    problem = bind(Network(Functional(), cross_entropy, TRAIN, workers=2, batch_size="full"))
    x = problem.initial()
    first = problem.losses(x, Draw(0))
    torch.rand(5)
    assert torch.equal(problem.losses(x, Draw(0)), first)
    assert not torch.equal(problem.losses(x, Draw(1)), first)


def test_augmentation_is_seeded_and_for_training_only() -> None:
    def noise(x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)

    plain = bind(Network(mlp(), cross_entropy, TRAIN, TEST, workers=2))
    noisy = bind(Network(plain._module.module, cross_entropy, TRAIN, TEST, workers=2, augment=noise))
    x = plain.initial()
    assert torch.equal(noisy.losses(x, Draw(3)), noisy.losses(x, Draw(3)))
    assert not torch.equal(noisy.losses(x, Draw(3)), plain.losses(x, Draw(3)))
    assert torch.equal(noisy.evaluate(x).values["test_loss"], plain.evaluate(x).values["test_loss"])


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_evaluation_of_one_model_is_that_of_the_whole_data_set(decay: float) -> None:
    options = {"workers": 3, "weights": "rows", "partition": "unequal", "regularisation": decay}
    problem = bind(Network(mlp(), cross_entropy, TRAIN, TEST, **options))
    x = problem.initial()
    model = copy.deepcopy(problem._module.module)
    measured = problem.evaluate(x)
    total = {k: float((v * measured.weights[k]).sum() / measured.weights[k].sum()) for k, v in
             measured.values.items()}  # fmt: skip
    losses = []
    for (features, labels), name in ((TRAIN, "loss"), (TEST, "test_loss")):
        output = model(torch.tensor(features).double())
        losses.append(cross_entropy(output, torch.tensor(labels)).item())
        penalty = decay / 2 * float(x @ x) if name == "loss" else 0.0
        assert total[name] == pytest.approx(losses[-1] + penalty, rel=1e-10)
    assert total["generalisation_gap"] == pytest.approx(losses[1] - losses[0], rel=1e-9)
    right = (output.argmax(1) == torch.tensor(TEST[1])).double().mean()
    assert total["accuracy"] == pytest.approx(float(right))
    assert measured.weights["accuracy"].sum() == 11


def test_personal_points_are_evaluated_on_the_workers_own_test_rows() -> None:
    options = {"workers": 2, "partition": "classes", "classes_per_worker": 1}
    problem = bind(Network(mlp(), cross_entropy, TRAIN, TEST, **options))
    X = problem.initial().repeat(2, 1)
    # worker i learns to answer its own class, whatever the image
    for i, rows in enumerate(problem._data):
        problem.layout.views(X[i])["head.bias"][rows.train.targets[0]] = 100
    measured = problem.evaluate(X)
    assert measured.values["accuracy"].tolist() == [1, 1]
    assert measured.weights["accuracy"].tolist() == [1, 1]
    gaps = measured.values["test_loss"] - measured.values["loss"]
    assert torch.allclose(measured.values["generalisation_gap"], gaps)


def test_adjusted_logits_know_how_often_a_worker_has_each_class() -> None:
    """In losses, gradients and the workers' own test rows; one for all is tested with the bare logits."""
    torch.manual_seed(0)
    made = mlp()
    arrays = {"train": TRAIN, "test": TEST, "workers": 2, "partition": "dirichlet", "alpha": 0.3}
    problem = bind(Network(made, cross_entropy, **arrays, batch_size="full", logit_adjustment=0.7))
    bare = bind(Network(made, cross_entropy, **arrays, batch_size="full"))
    X = problem.initial().repeat(2, 1)
    for worker, loss, gradient in zip(problem._data, problem.losses(X), problem.gradients(X), strict=True):
        plain = copy.deepcopy(made).double()
        priors = torch.bincount(worker.train.targets, minlength=5).double() + 0.1
        logits = plain(worker.train.features.double()) + 0.7 * (priors / priors.sum()).log()
        expected = cross_entropy(logits, worker.train.targets)
        expected.backward()
        assert torch.allclose(loss, expected.detach(), atol=1e-12)
        every = dict(plain.named_parameters())
        for name, value in problem.layout.views(gradient).items():
            assert torch.allclose(value, every[name].grad, atol=1e-12), name
    shared, plainly = problem.evaluate(X[0]).values, bare.evaluate(X[0]).values
    assert torch.equal(shared["test_loss"], plainly["test_loss"])
    assert not torch.equal(shared["loss"], plainly["loss"])
    ignored = (TRAIN[0], np.where(TRAIN[1] == 4, -100, TRAIN[1]))
    some = bind(Network(made, cross_entropy, ignored, workers=1, logit_adjustment=1.0))
    assert some._adjustments.argmin() == 4
    personal, without = problem.evaluate(X).values, bare.evaluate(X).values
    assert torch.equal(personal["loss"], problem.losses(X))
    assert (personal["accuracy"] > without["accuracy"]).any()


def test_regression_has_no_accuracy_and_products_fall_back_where_an_operator_has_no_rule() -> None:
    x, y = GENERATOR.standard_normal((20, 3)), GENERATOR.standard_normal((20, 2))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def own_mse(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).square().mean()

    products = []
    for loss, forward in ((mse_loss, False), (own_mse, True)):  # torch 2.13 fails in mse_loss's forward rule
        problem = bind(Network(model, loss, (x, y), (x, y), workers=2, batch_size="full"))
        measured = set(problem.evaluate(problem.initial()).values)
        assert measured == {"loss", "test_loss", "generalisation_gap"}
        products.append(problem.hvps(problem.initial(), torch.linspace(-1, 1, problem.dim).double()))
        if problem._forward_over_reverse is not forward:
            pytest.skip("another torch: mse_loss has a forward rule")
    assert torch.allclose(*products)


def test_frozen_parameters_and_indices_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    tokens = GENERATOR.integers(0, 9, (12, 2))
    problem = bind(Network(model, cross_entropy, (tokens, tokens[:, 0] % 3), workers=2))
    assert problem.layout.names == ("2.weight", "2.bias")
    assert problem.gradients(problem.initial()).count_nonzero() > 0


def test_private_patterns_may_match_nothing_or_everything() -> None:
    for private, sizes in (([], (0,)), (["*"], None)):
        problem = bind(Network(mlp(), cross_entropy, TRAIN, workers=2, private=private))
        x = problem.initial()
        empty = "private" if sizes else "shared"
        assert problem.gradient(0, x, Draw(0), empty) == []


def test_built_in_networks_start_the_same_everywhere_and_learn() -> None:
    recipe = NetworkTable(3, model="cnn", weights="rows").recipe()
    problem = bind(recipe, torch.float32)
    x = problem.initial()
    assert torch.equal(x, bind(recipe, torch.float32).initial())
    assert not torch.equal(x, bind(recipe, torch.float32, seed=8).initial())
    assert all(v.count_nonzero() == 0 for k, v in problem.layout.views(x).items() if k.endswith("bias"))
    velocity = torch.zeros_like(x)
    for t in range(60):
        velocity = 0.9 * velocity + problem.total_gradient(x, Draw(t))
        x = x - 0.03 * velocity
    measured = problem.evaluate(x)
    weights = measured.weights["accuracy"]
    assert (measured.values["accuracy"] * weights).sum() / weights.sum() > 0.9


def test_an_mlp_without_hidden_layers_is_logistic_regression() -> None:
    tables = {"run": {"workers": 2}, "problem": {"kind": "network", "dataset": "digits", "hidden": []}}
    problem = bind(from_tables(tables, "c").problem.recipe())
    W, b = (value.numpy() for value in problem.layout.views(problem.initial()).values())
    assert (W.shape, b.shape, problem.dim) == ((10, 64), (10,), 650)
    data = open_dataset("digits")
    X = (data.train.read(np.arange(len(data.train))).reshape(-1, 64) - data.mean) / data.std
    Y = np.eye(10)[data.train.labels]
    P = softmax(X @ W.T + b, axis=1)
    errors = torch.tensor(np.hstack([((P - Y).T @ X).ravel(), (P - Y).sum(0)]) / len(X))
    assert problem.losses(problem.initial()).mean().item() == pytest.approx(-np.log((P * Y).sum(1)).mean())
    assert torch.allclose(problem.total_gradient(problem.initial()), errors, atol=1e-12)


def test_what_does_not_fit_together_is_named() -> None:
    with pytest.raises(UserError, match=r"alexnet.*16×16.*8×8"):
        NetworkTable(2, model="alexnet").recipe()
    with pytest.raises(UserError, match="workers"):
        bind(Network(mlp(), cross_entropy, TRAIN, workers=41))
    with pytest.raises(UserError, match="do not fit together"):
        bind(Network(nn.Linear(3, 3), cross_entropy, TRAIN, workers=2))
    with pytest.raises(UserError, match="4 outputs, but a label is 4"):
        bind(Network(build("mlp", (1, 8, 8), 4), lambda o, _: o.mean(), TRAIN, workers=2))
    with pytest.raises(UserError, match="one number"):
        bind(Network(mlp(), lambda o, _: o, TRAIN, workers=2))
    with pytest.raises(UserError, match="momentum"):
        bind(Network(nn.Sequential(nn.BatchNorm2d(1, momentum=None)), cross_entropy, TRAIN, workers=2))
    with pytest.raises(UserError, match="batch_size"):
        Network(mlp(), cross_entropy, TRAIN, workers=2, batch_size=0)
    regression = TRAIN[0], TRAIN[1].astype(np.float32)
    with pytest.raises(UserError, match=r"logit_adjustment needs class labels"):
        bind(Network(mlp(), lambda o, y: o.mean() * y.mean(), regression, workers=2, logit_adjustment=1))


class Rows(torch.utils.data.Dataset):
    """A data set without targets, all of which has to be read for them."""

    def __init__(self, x, y, noise=0.0):
        self.x, self.y, self.noise, self.read = torch.as_tensor(x), y, noise, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read.append(i)
        return self.x[i] + self.noise * torch.randn(()), int(self.y[i])


def test_torch_datasets_are_read_row_by_row() -> None:
    plain = Network(mlp(), cross_entropy, TRAIN, TEST, workers=2)
    arrays = torch.utils.data.TensorDataset(*map(torch.as_tensor, TRAIN))
    listed = Rows(*TRAIN)
    listed.targets = list(TRAIN[1])
    for train in (Rows(*TRAIN), listed, arrays):
        given = bind(Network(plain.model, cross_entropy, train, Rows(*TEST), workers=2))
        expected = bind(plain)
        x = given.initial()
        assert torch.equal(given.total_gradient(x, Draw(3)), expected.total_gradient(x, Draw(3)))
        measured, wanted = given.evaluate(x).values, expected.evaluate(x).values
        assert all(torch.equal(measured[name], value) for name, value in wanted.items())
    listed.read.clear()
    network = Network(plain.model, cross_entropy, listed, workers=20)
    network.bind(Share(range(1), 20, 7))
    of_others = set(range(40)) - {*network._parts(7).train[0]}
    assert len(of_others & {*listed.read}) < len(of_others)  # some rows of others, to try the loss


def test_torch_datasets_that_cannot_be() -> None:
    for train, message in (
        (Rows(*TRAIN, noise=1.0), "row 0 is another one when it is read again"),
        (Rows([], []), "needs a length of at least 1 and rows"),
        (torch.utils.data.StackDataset(["a"], ["b"]), "row 0 is a str and a str"),
    ):
        with pytest.raises(UserError, match=message):
            Network(mlp(), cross_entropy, train, workers=2)


def test_a_model_and_a_loss_of_ones_own_on_a_data_set_by_name() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    own = bind(Network(model, lambda o, y: cross_entropy(o, y), "digits", workers=3))
    built = {"kind": "network", "dataset": "digits", "hidden": []}
    given = bind(from_tables({"run": {"workers": 3}, "problem": built}, "c").problem.recipe())
    x = given.initial()
    torch.testing.assert_close(own.total_gradient(x), given.total_gradient(x), rtol=1e-12, atol=1e-14)
    with pytest.raises(UserError, match='"digits" has the test rows, too'):
        Network(model, cross_entropy, "digits", TEST, workers=3)
