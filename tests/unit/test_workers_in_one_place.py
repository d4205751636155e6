"""The number of workers is said in two places at times; then it is the same."""

import pytest
import torch

import hpcopt
from hpcopt.config import from_tables
from hpcopt.math.flat import Layout
from hpcopt.problems.base import Share
from hpcopt.problems.one_by_one import OneByOne


def eight(workers):
    """A factory that does not listen."""
    return hpcopt.Quadratic(8, "power", 5)


@pytest.mark.parametrize("workers", [2, 16])
def test_a_factory_that_makes_other_workers_is_refused(tmp_path, workers):
    from hpcopt.api import MPI, start

    run = {"workers": workers, "rounds": 1, "out": str(tmp_path / "run")}
    config = from_tables({"run": run, "problem": {"kind": f"{__name__}:eight"}}, "test")
    with pytest.raises(
        hpcopt.UserError, match=f"workers = {workers}, but the problem was made for 8 workers"
    ):
        start(MPI.COMM_SELF, config)


@pytest.mark.parametrize("rows", [[3, 3], [3] * 16])
def test_a_problem_with_rows_of_other_workers_is_refused(rows):
    class Mine(OneByOne):
        def __init__(self):
            super().__init__(Share(range(8), 8, 0), Layout.of([("x", (2,))]), rows)

        initial = batch_rows = _loss = _add_gradient = _hvp = None

    with pytest.raises(
        hpcopt.UserError, match=f"workers = 8, but the problem has rows of {len(rows)} workers"
    ):
        Mine()


def test_a_recipe_and_a_setting_that_differ_are_refused(tmp_path):
    data = torch.randn(12, 3), torch.arange(12) % 2
    recipe = hpcopt.Network(torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, data, workers=2)
    with pytest.raises(hpcopt.UserError, match="workers = 4, but the problem was made for 2 workers"):
        hpcopt.run(hpcopt.AllreduceSGD(), recipe, out=tmp_path, rounds=1, workers=4)
