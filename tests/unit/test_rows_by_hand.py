"""Which rows a worker has, given by hand; how many in run.h5; means by rows beside the plain ones."""

import h5py
import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.config import from_tables

DRAW = np.random.default_rng(3)
X, Y = DRAW.standard_normal((60, 4)), DRAW.integers(0, 3, 60)
TRAIN, TEST = (X[:40], Y[:40]), (X[40:], Y[40:])
PARTS = [[5, 3, 38], list(range(8, 32)), [0, 1]]
TESTS = [[19], [], list(range(12))]


def network(**keys):
    torch.manual_seed(0)
    model, loss = torch.nn.Linear(4, 3), torch.nn.functional.cross_entropy
    return hpcopt.Network(model, loss, TRAIN, TEST, workers=3, **({"batch_size": 2} | keys))


def write(path, train=PARTS, test=TESTS):
    with h5py.File(path, "w") as file:
        for split, parts in (("train", train), ("test", test)):
            for worker, rows in enumerate(parts or []):
                file[f"{split}/{worker}"] = np.array(rows, np.int32)
    return str(path)


def bound(recipe):
    return recipe.bind(hpcopt.Share(range(3), 3, 0))


@pytest.mark.parametrize("way", ["lists", "masks", "file"])
def test_workers_have_the_rows_that_were_given(tmp_path, way):
    given = {"rows": PARTS, "test_rows": TESTS}
    if way == "masks":
        given["rows"] = [np.isin(np.arange(40), part) for part in PARTS]
    if way == "file":
        given = {"rows": write(tmp_path / "rows.h5")}
    problem = bound(network(**given))
    for worker, part, test in zip(problem._data, PARTS, TESTS, strict=True):
        rows = sorted(part) if way == "masks" else part
        assert np.array_equal(worker.train.features, TRAIN[0][rows])
        assert np.array_equal(worker.own_test.targets, TEST[1][test])
    linear = bound(hpcopt.Logistic(TRAIN, TEST, workers=3, positive=1, **given))
    assert (linear.rows.tolist(), linear.test_rows.tolist()) == ([3, 24, 2], [1, 0, 12])


def test_a_config_names_the_file(tmp_path):
    tables = {"run": {"workers": 3}, "problem": {"kind": "network", "dataset": "digits"}}
    tables["problem"]["rows"] = write(tmp_path / "rows.h5", PARTS, None)
    problem = bound(from_tables(tables, "c").problem.recipe())
    assert problem.rows.tolist() == [3, 24, 2]
    assert problem.test_rows.tolist() == [100, 100, 99]  # even parts
    tables["problem"] |= {"kind": "logistic", "positive": 3}
    assert bound(from_tables(tables, "c").problem.recipe()).rows.tolist() == [3, 24, 2]
    tables["problem"]["partition"] = "unequal"
    with pytest.raises(hpcopt.UserError, match="says which rows workers have, and so does partition"):
        from_tables(tables, "c")


def test_numbers_of_rows_and_means_by_rows(tmp_path):
    def first(problem, model):
        return model[:, 0]

    recipe = network(rows=PARTS, test_rows=TESTS)
    method = hpcopt.DPSGD(lr=0.3, local_steps=2)
    keys = {"rounds": 2, "metrics": [first], "dtype": "float64"}
    hpcopt.run(method, recipe, out=tmp_path / "run", **keys)
    data = hpcopt.load(tmp_path / "run")
    assert data["rows/train"].values.tolist() == [3, 24, 2]
    assert data["rows/test"].values.tolist() == [1, 0, 12]
    assert data["rows/train"].dims == ("worker",)
    assert data["rows/train"].dtype == np.int64
    loss, accuracy = data["workers/loss"].values, data["workers/accuracy"].values
    last = data["metrics"].isel(record=-1)
    assert float(last["loss"]) == pytest.approx(loss[-1].mean())
    assert float(last["loss_by_rows"]) == pytest.approx(loss[-1] @ [3, 24, 2] / 29)
    assert float(last["accuracy"]) == pytest.approx(accuracy[-1, [0, 2]].mean())
    assert float(last["accuracy_by_rows"]) == pytest.approx(accuracy[-1] @ [1, 0, 12] / 13)
    assert float(last["accuracy_by_rows"]) != float(last["accuracy"])
    assert float(last["first_by_rows"]) == pytest.approx(data["workers/first"].values[-1] @ [3, 24, 2] / 29)
    same = hpcopt.simulate(method, recipe, **keys)
    assert same["rows"].equals(data["rows"])
    even = hpcopt.simulate(method, network(), **keys)["metrics"]
    assert not [name for name in even.data_vars if name.endswith("_by_rows")]


def link(path):
    with h5py.File(path, "w") as file:
        file["train/0"] = h5py.ExternalLink("/etc/passwd", "/x")
    return str(path)


def group(path):
    with h5py.File(path, "w") as file:
        file.create_group("train/0")
    return str(path)


def gap(path):
    with h5py.File(path, "w") as file:
        file["train/0"] = file["train/2"] = np.arange(4)
    return str(path)


def huge(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("train/0", (1 << 50,), np.int64, chunks=(1024,))
    return str(path)


def text(path):
    path.write_text("0 1 2")
    return str(path)


def flat(path):
    with h5py.File(path, "w") as file:
        file["train"] = np.arange(4)
    return str(path)


WRONG = {
    "too few workers": (lambda path: PARTS[:2], "rows: of 2 workers, but there are workers = 3"),
    "beyond": (lambda path: [[0], [40], [1]], r"rows of worker 1: \[40\]; allowed are numbers from 0 to 39"),
    "none": (lambda path: [[0], [], [1]], "worker 1 has no training row"),
    "no file": (lambda path: str(path), "there is no such file"),
    "no HDF5": (text, "not readable: damaged or no HDF5"),
    "a link": (link, "/train/0 is no dataset"),
    "a group": (group, "/train/0 is no dataset"),
    "huge": (huge, "at most as many as there are, 40"),
    "flat": (flat, "not readable"),
    "fewer in the file": (lambda path: write(path, PARTS[:2], None), "/train: of 2 workers"),
    "a gap": (lambda path: gap(path), "/train/1 is no dataset; there are 2 workers"),
    "more in the file": (lambda path: write(path, PARTS, TESTS[:1] * 3 + [[1]]), "/test: of 4 workers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_rows_that_cannot_be(tmp_path, case):
    make, message = WRONG[case]
    with pytest.raises(hpcopt.UserError, match=message):
        bound(network(rows=make(tmp_path / "rows.h5")))
