"""The plan of a sweep: which cases, under which names, and when a directory holds another one."""

import itertools
import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcopt.config import sweep as planning
from hpcopt.config.sweep import MAX_NAME, combined, plan
from hpcopt.config.values import axis, split
from hpcopt.control.groups import groups
from hpcopt.engine.sweep_directory import DONE, FAILED, OPEN, Failure, SweepDirectory
from hpcopt.errors import UserError

TOML = '[run]\nworkers = 4\n[problem]\nkind = "quadratic"\n'
# TOML has no control characters
plain = st.characters(codec="utf-8", exclude_categories=("Cc",), exclude_characters="\"'\\[]{}(),")
words = st.text(plain, min_size=1)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "my.toml").write_text(TOML)
    return tmp_path / "my.toml"


def refusal(function, *arguments, **more):
    with pytest.raises(UserError) as caught:
        function(*arguments, **more)
    return str(caught.value)


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.lists(st.integers()))))
def test_values_are_split_where_toml_would(values):
    if values:
        texts = [json.dumps(value) for value in values]
        assert split(",".join(texts), "--over k") == texts
        assert [tomllib.loads(f"v = {text.replace('Infinity', 'inf')}")["v"] for text in texts] == values


@given(st.lists(words.map(lambda word: json.dumps(f"a,{word},b]", ensure_ascii=False)), min_size=1))
def test_commas_and_brackets_in_quotes_do_not_split(texts):
    assert split(",".join(texts), "--over k") == texts


def test_splitting():
    assert split("""1,[[2,3],[4]],"a,b",'c,d[', e""", "") == ["1", "[[2,3],[4]]", '"a,b"', "'c,d['", "e"]
    for text in ("", ",", "1,", ",1", "1,,2", "[1", "1]", "'a", '"a,b', "1, ,2"):
        assert f"--over k={text}: must be values" in refusal(split, text, "--over k")


def test_ranges():
    assert list(axis("run.seed=0:5")[1]) == [0, 1, 2, 3, 4]
    assert list(axis("run.seed=0:10:2")[1]) == [0, 2, 4, 6, 8]
    assert axis("run.seed=0:2,7,10:12")[1] == ["0", "1", "7", "10", "11"]
    assert axis("problem.kind=mine:factory,0:x")[1] == ["mine:factory", "0:x"]
    for wrong in ("5:0", "0:5:0", "0:0"):
        assert f"{wrong} has no number in it" in refusal(axis, f"run.seed={wrong}")
    assert "1000000000000 cases, and 10000" in refusal(combined, ["run.seed=0:1000000000000"], False)
    assert "more than 10000 values" in refusal(axis, "run.seed=1,0:999999999999")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_every_combination_once_in_order(sizes):
    keys = [f"method.k{number}" for number in range(len(sizes))]
    cases = combined([f"{key}=0:{size}" for key, size in zip(keys, sizes, strict=True)], False)
    expected = itertools.product(*map(range, sizes))
    assert [case.settings for case in cases] == [
        tuple(f"{key}={value}" for key, value in zip(keys, row, strict=True)) for row in expected
    ]
    assert len({case.name for case in cases}) == len(cases)


def test_pairs():
    cases = combined(["method.lr=0.1,0.2", "run.seed=3:5"], True)
    assert [case.name for case in cases] == ["lr=0.1,seed=3", "lr=0.2,seed=4"]
    told = refusal(combined, ["method.lr=0.1,0.2", "run.seed=0:3"], True)
    assert told == "--zip: needs as many values of each key, but method.lr has 2, run.seed has 3"


def test_names():
    def names(*over):
        return [case.name for case in combined(over, False)]

    assert names("method.scale=1", "problem.scale=2") == ["method.scale=1,problem.scale=2"]
    assert names('problem.dataset="/data/a b.h5"', "method.x=[1,2]") == ["dataset=_data_a_b.h5,x=_1,2_"]
    alike = names("problem.dataset=a/b,a b")
    assert len(set(alike)) == 2
    assert all(name.startswith("dataset=a_b-") for name in alike)
    (long,) = names(f"problem.dataset={'é' * 5000}")
    assert len(long) <= MAX_NAME
    assert long == names(f"problem.dataset={'é' * 5000}")[0] != names(f"problem.dataset={'é' * 5001}")[0]


@given(st.lists(words, min_size=1, max_size=3))
def test_a_name_is_one_plain_file(values):
    cases = combined(
        [f"problem.k{n}={json.dumps(value, ensure_ascii=False)}" for n, value in enumerate(values)], False
    )
    assert all(
        set(case.name)
        <= set("=,.+-_") | set("0123456789") | {c for c in case.name if c.isascii() and c.isalnum()}
        for case in cases
    )
    assert all(0 < len(case.name) <= MAX_NAME for case in cases)


def test_refused_plans(config):
    assert "--over: is missing" in refusal(plan, config, [])
    assert "run.seed: is there twice" in refusal(plan, config, ["run.seed=0", "run.seed=1"])
    assert "run.out: every run gets" in refusal(plan, config, ["run.out=a,b"])
    assert "must be TABLE.KEY=VALUE" in refusal(plan, config, ["seed=0,1"])
    assert "two cases are the same: method.lr=0.1 and method.lr=0.10" in refusal(
        plan, config, ["method.lr=0.1,0.10"]
    )
    told = refusal(plan(config, ["method.lr=0.1,-1,-2", "run.seed=0:2"]).check, 1)
    assert told == f"{config}, case lr=-1,seed=0: [method] lr = -1: input should be greater than 0"
    told = refusal(plan(config, ["run.workers=4,2"]).check, 3)
    assert "case workers=2: [run] workers = 2, but each case has 3 ranks (--ranks-each)" in told


def test_a_directory_keeps_to_its_plan(config, tmp_path):
    out = tmp_path / "out"

    def begin(over=("method.lr=0.1,0.2",), overrides=(), zipped=False):
        directory = SweepDirectory(out, plan(config, over, overrides, zipped))
        try:
            return directory, directory.open()
        finally:
            directory.release()

    first, token = begin()
    cases = first.plan.cases
    written = planning.read(out / planning.FILE)
    assert written["cases"] == [
        {"name": f"lr={lr}", "settings": [f"method.lr={lr}"]} for lr in ("0.1", "0.2")
    ]
    assert [first.state(case) for case in cases] == [OPEN, OPEN]
    first._claims = out / "claims" / token
    assert (first.claim(1), first.claim(1)) == (True, False)
    first.failed(cases[1], Failure(2, "no\nsuch file", 3))
    assert [first.state(case) for case in cases] == [OPEN, FAILED]
    assert DONE not in [first.state(case) for case in cases]

    config = config.rename(tmp_path / "moved.toml")
    second, token = begin()
    second._claims = out / "claims" / token
    assert second.claim(1)  # of a job that is gone nothing is left
    assert second.failure(cases[1])["message"] == "no\nsuch file"
    second.succeeded(cases[1])
    assert second.failure(cases[1]) == {}
    assert "run.rounds = 7, begun with nothing" in refusal(begin, overrides=["run.rounds=7"])
    assert '--over: ["method.lr=0.1"], begun with ["method.lr=0.1,0.2"]' in refusal(begin, ["method.lr=0.1"])
    assert "--zip: true, begun with false" in refusal(begin, zipped=True)
    config.write_text(TOML.replace("4", "5"))
    assert "run.workers = 5, begun with 4" in refusal(begin)
    (out / planning.FILE).write_text("x")
    assert "sweep.toml: cannot be read" in refusal(begin)
    (out / "run.h5").touch()
    assert "holds a run" in refusal(begin)


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    st.integers(1, 5),
    st.none() | st.integers(1, 4),
)
def test_groups_are_on_one_host_where_that_is_possible(hosts, size, most):
    found = groups(hosts, size, most)
    ranks = [rank for group in found for rank in group]
    assert len(set(ranks)) == len(ranks)
    assert all(len(group) == size for group in found)
    assert len(found) == min(len(hosts) // size, most or 99)
    whole = sum(hosts.count(host) // size for host in set(hosts))
    assert sum(len({hosts[rank] for rank in group}) == 1 for group in found) >= min(whole, len(found))


CASES = """
[small]
method.lr = 0.01
problem.eigenvalues = [1.0, 2.0]
["seed=3"]
run.seed = 3
"""


def cases_of(folder, text):
    (folder / "cases.toml").write_text(text)
    return folder / "cases.toml"


def test_listed_cases(config, tmp_path):
    small, other = plan(config, [], cases=cases_of(tmp_path, CASES)).cases
    assert small == planning.Case("small", ("method.lr=0.01", "problem.eigenvalues=[1.0, 2.0]"))
    assert other == planning.Case("seed=3", ("run.seed=3",))
    assert plan(config, [], cases=cases_of(tmp_path, CASES)).config(small, tmp_path).method.lr == 0.01


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has 0 cases"),
        ("['a/b']\nrun.seed = 1\n", "a case's name has at most"),
        ("['..']\nrun.seed = 1\n", "a case's name has at most"),
        ("lr = 1\n", "must have lines TABLE.KEY = VALUE"),
        ("[a]\nlr = 1\n", "must have lines TABLE.KEY = VALUE"),
        ("[a]\nrun.seed = 1\n[b]\nrun.seed = 1\n", "two cases are the same"),
        ("[a]\nrun.seed = = 1\n", "not valid TOML"),
    ],
)
def test_wrong_lists_of_cases(config, tmp_path, text, words):
    assert words in refusal(plan, config, [], cases=cases_of(tmp_path, text))


def test_list_and_values_together_are_refused(config, tmp_path):
    assert "nothing for --over" in refusal(plan, config, ["run.seed=0:2"], cases=cases_of(tmp_path, CASES))


def test_more_cases_may_be_listed_later_but_none_changed(config, tmp_path):
    def opened(text):
        directory = SweepDirectory(tmp_path / "out", plan(config, [], cases=cases_of(tmp_path, text)))
        try:
            directory.open()
        finally:
            directory.release()
        return [case["name"] for case in planning.read(tmp_path / "out" / planning.FILE)["cases"]]

    assert opened(CASES) == ["small", "seed=3"]
    assert opened(CASES + "[more]\nrun.seed = 4\n") == ["small", "seed=3", "more"]
    assert "case small = " in refusal(opened, CASES.replace("0.01", "0.02"))
    assert "case small = nothing, begun with" in refusal(opened, "[more]\nrun.seed = 4\n")
