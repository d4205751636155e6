"""Configs: what is accepted, what is refused and in which words."""

import tomllib
from pathlib import Path

import pytest

from hpcopt.config import dump, from_tables, load, template
from hpcopt.config.methods import METHODS, method_table
from hpcopt.config.problems import PROBLEM_TABLES
from hpcopt.errors import UserError

GOOD = {"run": {"workers": 2}, "problem": {"kind": "quadratic"}}


@pytest.mark.parametrize(
    ("method", "kind"),
    [(name, kind) for name in METHODS for kind in (method_table(name).kinds or PROBLEM_TABLES)],
)
def test_what_init_prints_is_a_config(method, kind):
    text = template(method, kind)
    tables = tomllib.loads(text)
    config = from_tables(tables, "template")
    assert config.run.method == method
    assert config.problem.kind == kind
    # every key is there, and every one is explained
    for name, table in (("run", config.run), ("method", config.method), ("problem", config.problem)):
        for key, field in type(table).model_fields.items():
            assert key in tables[name] or f"\n# {key} =" in text
            assert field.description, key


@pytest.mark.parametrize("path", sorted(Path("jobs/configs").glob("*.toml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid_and_survive_a_round_trip(path):
    config = load(path)
    assert from_tables(tomllib.loads(dump(config)), "again") == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": {"worker": 2}}, ["[run] worker", "unknown key", "did you mean 'workers'?"]),
        ({"runs": {}}, ["[runs]", "unknown table", "did you mean 'run'?"]),
        ({"run": {"workers": "many"}}, ["[run] workers = 'many'", "whole number"]),
        ({"run": {"workers": 2.5}}, ["[run] workers = 2.5", "whole number"]),
        ({"run": {"workers": True}}, ["[run] workers = True", "whole number"]),
        ({"run": {"workers": 0}}, ["[run] workers = 0", "greater than or equal to 1"]),
        ({"run": {"rounds": 10**9, "evaluate_every": 1}}, ["[run]", "raise evaluate_every"]),
        ({"run": {"method": "allreduce_sdg"}}, ["[run] method", "did you mean 'allreduce_sgd'?"]),
        ({"run": {"device": "gpu"}}, ["[run] device = 'gpu'"]),
        ({"run": 3}, ["run", "must be a table"]),
        ({"method": {"lr": float("nan")}}, ["[method] lr"]),
        ({"method": {"lr": -1.0}}, ["[method] lr = -1.0", "greater than 0"]),
        ({"problem": {}}, ["[problem] kind", "missing", '"network"']),
        ({"problem": {"kind": "quadratc"}}, ["[problem] kind", "did you mean 'quadratic'?"]),
        ({"problem": {"kind": 7}}, ["[problem] kind = 7"]),
        ({"problem": {"kind": "quadratic", "eigenvalues": [1.0, float("inf")]}}, ["[problem] eigenvalues"]),
        ({"problem": {"kind": "quadratic", "eigenvalues": [1.0], "dim": 2}}, ["dim = 2", "1 entries"]),
        ({"problem": {"kind": "network", "model": "mpl"}}, ["[problem] model = 'mpl'", "'mlp'"]),
    ],
)
def test_what_is_wrong_is_named(change, words):
    with pytest.raises(UserError) as caught:
        from_tables(GOOD | change, "my.toml")
    for word in ["my.toml", *words]:
        assert word in str(caught.value)


def test_everything_wrong_is_told_at_once():
    with pytest.raises(UserError) as caught:
        from_tables({"run": {"worker": 1, "seed": -1}, "problem": {"kind": "quadratic", "dim": 0}}, "c")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("override", "table", "key", "value"),
    [
        ("run.rounds=7", "run", "rounds", 7),
        ("run.out=some/where", "run", "out", "some/where"),
        ('run.out="3"', "run", "out", "3"),
        ("run.deterministic=true", "run", "deterministic", True),
        ("problem.eigenvalues=[1.0, 2.0]", "problem", "eigenvalues", [1.0, 2.0]),
    ],
)
def test_overrides(tmp_path, override, table, key, value):
    file = tmp_path / "c.toml"
    file.write_text('[problem]\nkind = "quadratic"\n')
    assert getattr(getattr(load(file, [override]), table), key) == value


@pytest.mark.parametrize("override", ["rounds=7", "run.rounds", "a.b.c=1", "=", "run.=1"])
def test_overrides_that_are_none(tmp_path, override):
    file = tmp_path / "c.toml"
    file.write_text('[problem]\nkind = "quadratic"\n')
    with pytest.raises(UserError, match="--set"):
        load(file, [override])


def test_defaults_that_depend_on_other_values():
    network = from_tables({"run": {"rounds": 50}, "problem": {"kind": "network"}}, "c")
    assert (network.run.dtype, network.method.lr_horizon) == ("float32", 50)
    assert from_tables(GOOD, "c").run.dtype == "float64"
    # an extended run keeps the schedule that it began with
    again = from_tables(network.tables() | {"run": network.tables()["run"] | {"rounds": 90}}, "c")
    assert again.method.lr_horizon == 50
