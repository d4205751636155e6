"""Your own problem by "package.module:factory"."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpcopt.config import from_tables
from hpcopt.errors import UserError
from hpcopt.problems.base import Share
from hpcopt.problems.custom import CustomTable
from hpcopt.problems.quadratic import Quadratic

SOURCE = """
from hpcopt.problems.quadratic import Quadratic

def bowl(workers, curvature=1.0):
    return Quadratic(workers, eigenvalues=[curvature])

def seeded(workers, seed=None):
    return Quadratic(workers, eigenvalues=[1.0 + seed])

def nothing(workers):
    return None
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_problems.py").write_text(SOURCE)
    (tmp_path / "my_broken.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "my_problems", raising=False)


def test_a_factory_that_asks_for_a_seed_gets_that_of_the_run() -> None:
    tables = {"run": {"seed": 6, "workers": 2}, "problem": {"kind": "my_problems:seeded"}}
    assert from_tables(tables, "c").problem.recipe().eigenvalues == [7.0]
    tables["problem"]["seed"] = 1
    assert from_tables(tables, "c").problem.recipe().eigenvalues == [2.0]


def test_the_factory_gets_its_keys() -> None:
    recipe = CustomTable(2, kind="my_problems:bowl", curvature=3.0).recipe()
    assert isinstance(recipe, Quadratic)
    problem = recipe.bind(Share(range(2), 2, seed=0))
    assert problem.gradients(problem.initial())[1].item() == 3 * problem.initial().item()


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("no_such_module:f", {}, "no module no_such_module"),
        ("my_problems:bowls", {}, "did you mean 'bowl'"),
        ("my_problems:bowl", {"curvatur": 1.0}, "did you mean 'curvature'"),
        ("my_problems:nothing", {}, "no bind"),
        ("my_problems", {}, "package.module:factory"),
    ],
)
def test_what_is_wrong_is_named(kind: str, keys: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CustomTable(2, kind=kind, **keys).recipe()


def test_an_error_inside_the_users_module_keeps_its_traceback() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        CustomTable(2, kind="my_broken:f").recipe()
