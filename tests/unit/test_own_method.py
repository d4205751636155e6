"""A method of the user's own: its settings, where it may be defined; and what is built in."""

import subprocess
import sys

import numpy as np
import pytest
from mpi4py import MPI

import hpcopt
from hpcopt.api import start
from hpcopt.config import from_tables, load, template
from hpcopt.config.methods import METHOD_TABLES, METHODS, UncheckedTable
from hpcopt.errors import UserError

SOURCE = """
from dataclasses import dataclass
from torch import Tensor
import hpcopt

class Settings(hpcopt.Table):
    lr: float = 0.1
    \"\"\"how far\"\"\"

@dataclass(kw_only=True)
class State(hpcopt.State):
    x: Tensor = hpcopt.replicated()

class Descent(hpcopt.Method[Settings, State]):
    def start(self, problem, ports):
        self.problem, self.reduce = problem, ports.reduce
        return State(x=problem.initial())

    def step(self, state):
        g = self.reduce.gradient(self.problem, state.x, hpcopt.Draw(state.round))
        state.x.sub_(g, alpha=self.settings.lr)
        return hpcopt.StepInfo()

class NoMethod:
    pass
"""
MAIN = """
import sys
out = sys.argv[1]
problem = hpcopt.Quadratic(2, "power", 5)
hpcopt.run(Descent(lr=0.2), problem, out=out, rounds=3)
hpcopt.resume(out, problem=problem, overrides=("run.rounds=6",))
hpcopt.run(Descent(lr=0.2), problem, out=out + "-again", rounds=6)  # `run` is still the function
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The module own_NAME, found in the current directory."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def tables(method, keys=None, **run):
    problem = {"kind": "quadratic", "eigenvalues": "power", "dim": 5}
    return {"run": {"method": method, "workers": 2} | run, "method": keys or {}, "problem": problem}


def test_it_runs_and_goes_on_as_built_in_ones_do(module, tmp_path):
    config = from_tables(tables(f"{module}:Descent", {"lr": 0.2}, rounds=4, out="mine"), "c.toml")
    start(MPI.COMM_SELF, config)
    hpcopt.resume("mine", overrides=("run.rounds=9",))
    builtin = hpcopt.run(
        hpcopt.AllreduceSGD(lr=0.2), hpcopt.Quadratic(2, "power", 5), out="built_in", rounds=9
    )
    losses = [hpcopt.load(run)["metrics/loss"].values for run in ("mine", builtin)]
    assert losses[0][-1] == losses[1][-1]
    assert np.array_equal(losses[0][[0, -1]], losses[1][[0, -1]])


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("{}:Descent", {"lrr": 1.0}, r"c\.toml: \[method\] lrr: unknown key; did you mean 'lr'"),
        ("{}:Descend", {}, r"has no Class Descend; did you mean 'Descent'"),
        ("{}:NoMethod", {}, r"NoMethod\": is no hpcopt\.Method"),
        ("no_such_module:Descent", {}, "no module no_such_module"),
        ("topk2", {}, r"did you mean 'topk'.*package\.module:Class"),
    ],
)
def test_what_is_wrong_is_named(module, method, keys, message):
    with pytest.raises(UserError, match=message):
        from_tables(tables(method.format(module), keys), "c.toml")


def test_where_its_module_cannot_be_imported_it_is_checked_in_the_job(module, tmp_path):
    """As on a login node without torch."""
    text = (tmp_path / f"{module}.py").read_text()
    (tmp_path / f"{module}_late.py").write_text(f"import not_on_this_node\n{text}")
    config = from_tables(tables(f"{module}_late:Descent", {"anything": 1}), "c.toml")
    assert config.tables()["method"] == {"anything": 1}
    assert isinstance(config.method, UncheckedTable)
    (tmp_path / "not_on_this_node.py").write_text("")  # but on this one
    with pytest.raises(UserError, match="anything: unknown key"):
        start(MPI.COMM_SELF, config)


def test_init_prints_its_keys(module, tmp_path):
    text = template(f"{module}:Descent", "quadratic")
    assert "# how far\nlr = 0.1" in text
    (tmp_path / "own.toml").write_text(text)
    assert load(tmp_path / "own.toml").run.method == f"{module}:Descent"


def test_a_class_of_a_script_goes_on_in_that_script_only(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SOURCE + MAIN)
    command = [sys.executable, script, tmp_path / "run"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = [hpcopt.load(f"{tmp_path}/run{name}")["metrics/loss"].values[-1] for name in ("", "-again")]
    assert found[0] == found[1]
    with pytest.raises(UserError, match="was defined in a script; go on from Python, in that script"):
        hpcopt.resume(tmp_path / "run", problem=hpcopt.Quadratic(2, "power", 5))


def test_a_built_in_method_is_one_line_in_the_registry():
    for name, kind in METHODS.items():
        method = getattr(hpcopt, kind)
        assert method.__module__ == f"hpcopt.methods.{name}"
        assert method.table is METHOD_TABLES[name]
        assert method.__mro__[1] is hpcopt.Method
