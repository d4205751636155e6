"""Linear problems: derivatives against autograd, sums over uneven workers, measures, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.errors import UserError
from hpcopt.math.losses import LogisticLoss, SquaredHingeLoss, SquaredLoss
from hpcopt.problems.base import Share
from hpcopt.problems.data.importer import import_npz

from .linear_cases import KINDS, UNEVEN, bound, gradient, objective, recipe, rows

W = torch.tensor(np.random.default_rng(3).standard_normal(8))
V = torch.tensor(np.random.default_rng(4).standard_normal(8))
BOTH = pytest.mark.parametrize("sparse", [False, True])
EVERY = pytest.mark.parametrize("kind", KINDS)


def written_out(kind, w, mine=slice(None)):
    """Σ l over some rows, as autograd sees it."""
    X, y = (torch.tensor(part[mine]) for part in rows())
    z = torch.cat([X, torch.ones(len(X), 1)], 1) @ w
    if kind == "logistic":
        return torch.log1p(torch.exp(-y * z)).sum()
    if kind == "squared_hinge":
        return torch.relu(1 - y * z).square().sum()
    return (z - y).square().sum() / 2


def f_of(kind, i, w, lam):
    """f_p."""
    factor = 90 / max(1, len(UNEVEN[i]))
    return lam / 2 * w @ w + factor * written_out(kind, w, UNEVEN[i])


@BOTH
@EVERY
def test_derivatives_are_those_of_autograd(kind, sparse):
    """Losses are f_p, derivatives f_p/n's; Σ ω_p f_p = λ/2 ‖w‖² + Σ l; a worker may have no rows."""
    problem = bound(recipe(kind, sparse))
    lam, n = problem.regularisation, problem.total_rows
    assert (lam, n, problem.scale) == (pytest.approx(0.09), 90, 90)
    for i in range(4):
        w = W.clone().requires_grad_()
        value = f_of(kind, i, w, lam)
        (g,) = torch.autograd.grad(value, w, create_graph=True)
        (hv,) = torch.autograd.grad(g @ V, w)
        assert float(problem.losses(W)[i]) == pytest.approx(float(value.detach()), rel=1e-12)
        torch.testing.assert_close(problem.gradients(W)[i] * n, g.detach())
        torch.testing.assert_close(
            torch.cat([p.view(-1) for p in problem.gradient(i, W, None)]) * n, g.detach()
        )
        torch.testing.assert_close(problem.hvps(W, V)[i] * n, hv)
    assert problem.weights.tolist() == [len(mine) / 90 for mine in UNEVEN]
    assert float(problem.weights @ problem.losses(W)) == pytest.approx(objective(problem, W))
    torch.testing.assert_close(problem.total_gradient(W) * n, gradient(problem, W))
    torch.testing.assert_close(problem.weights @ problem.gradients(W), problem.total_gradient(W))
    torch.testing.assert_close(problem.gradients(W, weighted=True).sum(0), problem.total_gradient(W))
    torch.testing.assert_close(problem.weights @ problem.hvps(W, V), problem.total_hvp(W, V))
    torch.testing.assert_close(problem.gradients(W.expand(4, -1)), problem.gradients(W))


@BOTH
def test_sums_of_rows(sparse):
    """Xᵀ c is counted as a pass; numbers of each worker are not; a product is one of all rows."""
    problem = bound(recipe("logistic", sparse))
    X = torch.tensor(np.concatenate([rows()[0], np.ones((90, 1))], 1))
    for ordered in (False, True):
        ports = LocalPorts(4, W, ordered)
        c = problem.loss.slope(problem.margins(W), problem.y)
        before = problem.products
        total = ports.reduce.contribution(8).add_transposed(problem, c).sum()
        assert problem.products == before + 1
        torch.testing.assert_close(total, X.T @ c)
        torch.testing.assert_close(ports.reduce.scalars(problem.sums(c[:, None])), c.sum()[None])
        assert sum(counter.passes for counter in ports.counters().values()) == 1
    torch.testing.assert_close(problem.margins(torch.stack([W, V], 1)), X @ torch.stack([W, V], 1))
    squares = sum(problem.rows_of_worker(i).squared_transposed_times(c[problem.span(i)]) for i in range(4))
    torch.testing.assert_close(squares, X.square().T @ c)
    torch.testing.assert_close(problem.of_rows(problem.loss.slope, X @ W), c)


def test_compressed_columns():
    matrix = bound(recipe("logistic", sparse=True)).rows_of_worker(0)
    columns, part = matrix.compressed()
    whole = matrix.times(torch.eye(8, dtype=torch.float64))
    assert columns.tolist() == np.flatnonzero(whole.abs().sum(0)).tolist()
    torch.testing.assert_close(part.times(W[columns]), matrix.times(W))
    torch.testing.assert_close(part.transposed_times(matrix.times(W)), (whole.T @ (whole @ W))[columns])


@BOTH
@EVERY
def test_a_workers_numbers_do_not_depend_on_who_else_is_here(kind, sparse):
    """The same bits."""
    together = bound(recipe(kind, sparse))
    values = together.of_rows(together.loss.value, together.margins(W))
    for i in range(4):
        alone = bound(recipe(kind, sparse), range(i, i + 1))
        assert torch.equal(alone.gradients(W)[0], together.gradients(W)[i])
        assert torch.equal(alone.hvps(W, V)[0], together.hvps(W, V)[i])
        assert torch.equal(alone.losses(W)[0], together.losses(W)[i])
        assert torch.equal(alone.margins(W), together.margins(W)[together.span(i)])
        mine = alone.of_rows(alone.loss.value, alone.margins(W))
        assert torch.equal(mine, values[together.span(i)])
        for name, value in alone.evaluate(W).values.items():
            assert torch.equal(value[0], together.evaluate(W).values[name][i]), name


@BOTH
def test_mini_batches_average_to_the_gradient(sparse):
    """An epoch of batches of equal size."""
    shards = np.split(np.arange(90), [30, 60])
    problem = bound(recipe("logistic", sparse, shards, batch_size=10))
    draws = [hpcopt.Draw(0, step, 3) for step in range(3)]
    mean = sum(problem.gradients(W, draw) for draw in draws) / 3
    torch.testing.assert_close(mean, problem.gradients(W))
    assert not torch.allclose(problem.gradients(W, draws[0]), mean)
    torch.testing.assert_close(sum(problem.hvps(W, V, draw) for draw in draws) / 3, problem.hvps(W, V))
    torch.testing.assert_close(
        problem.total_gradient(W, draws[1]), problem.weights @ problem.gradients(W, draws[1])
    )


def test_measures_are_those_of_sklearn():
    X, y = rows(150)
    made = hpcopt.Logistic((X[:90], y[:90]), (X[90:], y[90:]), workers=4, rows=UNEVEN, regularisation=1e-3)
    problem = bound(made)
    z = np.concatenate([X, np.ones((150, 1))], 1) @ W.numpy()
    losses = np.logaddexp(0, -y * z)
    found = problem.evaluate(W)

    def of_all(name):
        return float((found.values[name] * found.weights[name]).sum() / found.weights[name].sum())

    assert of_all("loss") == pytest.approx(objective(problem, W))
    assert of_all("test_loss") == pytest.approx(losses[90:].mean())
    assert of_all("generalisation_gap") == pytest.approx(losses[90:].mean() - losses[:90].mean())
    assert of_all("accuracy") == pytest.approx((np.sign(z[90:]) == y[90:]).mean())
    scores = problem.scores(W)["auprc"]
    assert len(scores) == 60
    assert problem.score("auprc", scores) == pytest.approx(average_precision_score(y[90:] > 0, z[90:]))
    tied = torch.stack([torch.tensor(z[90:]).round(), torch.tensor(y[90:])], 1)
    expected = average_precision_score(y[90:] > 0, z[90:].round())
    assert problem.score("auprc", tied) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [LogisticLoss(), SquaredHingeLoss(), SquaredLoss()])
def test_extreme_margins_do_not_overflow(loss):
    z = torch.tensor([-1e8, -800.0, -1.0, 0.0, 1.0, 800.0, 1e8], dtype=torch.float64)
    for y in (torch.ones(7).double(), -torch.ones(7).double()):
        for of in (loss.value, loss.slope, loss.curvature):
            assert torch.isfinite(of(z, y)).all()
        assert (loss.value(z, y) >= 0).all()
        assert (loss.curvature(z, y) >= 0).all()


def data(labels=None, **changes):
    X, y = rows()
    X = X.copy()
    for place, value in changes.items():
        X.flat[int(place[1:])] = value
    return (X, y if labels is None else np.resize(labels, 90))


BAD = {
    "labels": (data(labels=[1, 2, 3]), {}, r"training labels are 1, 2, 3; allowed without `positive`"),
    "unknown": (data(labels=[1, 2, 3]), {"positive": 7}, r"positive = 7: no training row has this label"),
    "none": (
        data(labels=[1, 2, 3]),
        {"positive": [0, 3]},
        r"positive = 0: no training .*; there are 1, 2, 3$",
    ),
    "target": (data(labels=[1.0, np.nan]), {}, r"training row 1: its target is not finite"),
    "one class": (data(labels=[1.0]), {}, r"all training rows are \+1; there is nothing to tell apart"),
    "rest": (data(labels=[0, 1]), {"positive": [0, 1]}, r"all training rows are \+1 \(positive = \[0, 1\]\)"),
    "NaN": (data(x5=np.nan), {}, r"a feature is nan, which is no finite float64"),
    "infinite": (data(x9=np.inf), {}, r"a feature is inf, which is no finite float64"),
    "square": (data(x9=-1e160), {}, r"a feature is -1e\+160, whose square is no finite float64"),
    "weights": (data(), {"weights": "uniform"}, r"weights = 'uniform'.*'rows'"),
    "λ = 0": (data(), {"regularisation": 0.0}, r"regularisation = 0.0"),
    "λ < 0": (data(), {"regularisation": -1.0}, r"regularisation = -1.0"),
    "no row": (data(), {"rows": [[], [], [], []]}, r"rows: 0 rows in all"),
    "one sign": (data(), {"rows": [np.flatnonzero(rows()[1] > 0), [], [], []]}, r"no two different targets"),
    "beyond": (data(), {"rows": [[0, 90], [], [], []]}, r"rows of worker 0: \[0, 90\]; .* from 0 to 89"),
    "negative": (data(), {"rows": [[], [0, -1], [], []]}, r"rows of worker 1: \[0, -1\]"),
    "fractions": (data(), {"rows": [[0.7, 1.9], [], [], []]}, r"rows of worker 0: \[0.7, 1.9\]"),
    "test NaN": (data(), {"test": data(x5=np.nan)}, r"a feature is nan, which is no finite float64"),
    "f* = 0": (data(), {"optimum": 0.0}, r"optimum = 0.0"),
    "f* = nan": (data(), {"optimum": np.nan}, r"optimum = nan"),
    "shards": (data(), {"rows": UNEVEN[:3]}, r"rows: of 3 workers, but there are workers = 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message(case):
    train, keys, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        bound(hpcopt.Logistic(train, workers=4, **keys))
    assert "\n" not in str(caught.value)


def test_a_mask_of_rows_and_their_numbers_are_the_same():
    masks = [np.isin(np.arange(90), mine) for mine in UNEVEN]
    one, other = (bound(recipe("logistic", shards=shards)) for shards in (UNEVEN, masks))
    assert torch.equal(one.y, other.y)


def test_numbers_must_fit_the_dtype():
    made = hpcopt.Logistic(data(x5=1e39), workers=4)
    with pytest.raises(UserError, match=r"a feature is 1e\+39, which is no finite float32"):
        made.bind(Share(range(4), 4, seed=0, dtype=torch.float32))


@BOTH
@pytest.mark.filterwarnings("error")
def test_infinite_numbers_in_single_precision(sparse):
    """There the largest float64 is infinite, and nothing is above that."""
    X, y = rows()
    X = X.astype(np.float32)
    for most in (1.0, np.inf):
        X[0, 0] = most
        made = hpcopt.Logistic((csr_matrix(X) if sparse else X, y), workers=4)
        if np.isfinite(most):
            bound(made)
            continue
        with pytest.raises(UserError, match=r"a feature is inf, which is no finite float64"):
            bound(made)


def test_more_features_than_memory():
    """An index that was damaged, say."""
    wide = csr_matrix(([1.0, 1.0], ([0, 1], [0, 10**13])), shape=(4, 10**13 + 1))
    made = hpcopt.Logistic((wide, [1, -1, 1, -1]), workers=2)
    with pytest.raises(
        UserError, match=r"a row has 10,000,000,000,001 features, .* take 320,000 GB, but this"
    ):
        bound(made)


def test_a_class_without_test_rows():
    train, test = data(labels=[-1, 0, 1, 2]), data(labels=[-1, 0, 1])
    made = hpcopt.Logistic(train, test, workers=2, positive=2)
    assert (made.test.targets < 0).all()


def test_labels():
    """Classes against the rest, 0 and 1, −1 and +1; numbers are targets of least squares."""
    for labels, positive in (([0, 1], None), ([-1, 1], None), ([3, 5, 4], [5]), ([3, 5, 4], 5)):
        made = hpcopt.Logistic(data(labels=labels), workers=2, positive=positive)
        chosen = 5 if positive else 1
        assert np.array_equal(made.train.targets, np.where(np.resize(labels, 90) == chosen, 1, -1))
    squares = hpcopt.LeastSquares(data(labels=[0.5, 2, 7]), workers=2)
    assert np.array_equal(squares.train.targets, np.resize([0.5, 2, 7], 90))


def test_pixels_and_bias():
    images = np.random.default_rng(0).integers(0, 256, (90, 1, 2, 3), dtype=np.uint8)
    for bias in (True, False):
        problem = bound(hpcopt.Logistic((images, rows()[1]), workers=1, bias=bias))
        X = problem.rows_of_worker(0).arrays()[0]
        order = np.sort(images.reshape(90, 6) / 255, 0)
        np.testing.assert_allclose(np.sort(X[:, :6], 0), order, rtol=1e-15)
        assert X.shape == (90, 6 + bias)
        assert not bias or (X[:, 6] == 1).all()


@pytest.mark.parametrize("scale", [1e20, 1e100])
def test_features_of_any_scale(scale):
    """A method gets on, or the loss is no number; it never stops as if there were nothing to gain."""
    X, y = rows()
    for kind in (hpcopt.Logistic, hpcopt.SquaredHinge):
        for method in (hpcopt.FADL(), hpcopt.TRON(), hpcopt.LBFGS(), hpcopt.Averaging()):
            found = hpcopt.simulate(method, kind((scale * X, y), workers=2), 3, evaluate_every=1)
            losses = found["metrics/loss"].values
            averaged = isinstance(method, hpcopt.Averaging) and scale < 1e60
            assert losses[-1] < losses[0] or np.isnan(losses[-1]) or averaged


def test_a_file_that_was_made_anew_is_noticed(tmp_path):
    """A run goes on with the same rows, also of another file, and not with others of the same size."""

    def made(labels):
        (tmp_path / "a.h5").unlink(missing_ok=True)
        np.savez(tmp_path / "a.npz", x=rows()[0], y=labels)
        import_npz(tmp_path / "a.npz", tmp_path / "a.h5")
        return hpcopt.Logistic(str(tmp_path / "a.h5"), workers=2, positive=1)

    labels = (rows()[1] > 0).astype(int)
    for again, fits in ((labels, True), (labels[::-1], False)):
        out = tmp_path / str(fits)
        hpcopt.run(hpcopt.FADL(), made(labels), out=out, rounds=2)
        other = made(again)
        if fits:
            hpcopt.resume(out, problem=other, overrides=("run.rounds=4",))
            assert hpcopt.load(out).attrs["last_round"] == 4
        else:
            with pytest.raises(UserError, match="the targets"):
                hpcopt.resume(out, problem=other, overrides=("run.rounds=4",))
