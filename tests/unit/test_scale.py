"""Scaling studies: the plan, what is refused, the file of samples, and a directory that goes on. No MPI."""

import json
import os
import stat
from collections import Counter

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hpcopt
from hpcopt.cluster.scale import prepare
from hpcopt.config.scale import Launch, plan
from hpcopt.config.scale_plan import keep, read
from hpcopt.config.scale_wish import Wish
from hpcopt.control import signals
from hpcopt.engine.scale import Study
from hpcopt.errors import Interrupted, UserError
from hpcopt.storage import scaling

RUN = {"workers": 4, "rounds": 30, "evaluate_every": 5}
LEAST_SQUARES = {"kind": "linear_regression", "dim": 3, "rows_per_worker": 5}
DIGITS = {"kind": "network", "dataset": "digits", "hidden": []}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a config into an empty directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(problem=LEAST_SQUARES, run=RUN):
        tables = {"run": run, "method": {"lr": 0.05}, "problem": problem}
        lines = (
            line
            for name, table in tables.items()
            for line in (f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()))
        )
        (tmp_path / "my.toml").write_text("\n".join(lines))
        return tmp_path / "my.toml"

    return write


# --- the plan ------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True),
    repeats=st.integers(1, 4),
    seed=st.integers(0, 100),
    by_point=st.booleans(),
)
def test_every_repeat_of_every_point_once_in_an_order_that_the_seed_decides(
    tmp_path_factory, ranks, repeats, seed, by_point
):
    config = tmp_path_factory.mktemp("plan") / "my.toml"
    config.write_text('[run]\nworkers = 64\n[problem]\nkind = "linear_regression"\n')
    options = {"mode": "strong", "ranks": ranks, "repeats": repeats}
    found, again = (plan(config, [f"run.seed={seed}"], options, by_point=by_point) for _ in range(2))
    assert found == again
    assert set(found.order) == {Launch(p, r) for p in ranks for r in range(repeats)}
    assert len(found.order) == len(ranks) * repeats
    points = [launch.ranks for launch in found.order]
    if by_point:
        assert points == [p for p in dict.fromkeys(points) for _ in range(repeats)]
    else:
        for r in range(repeats):
            assert sorted(points[r * len(ranks) : (r + 1) * len(ranks)]) == sorted(ranks)
    kept = keep(found, config.parent / "study")
    assert kept.table.ranks == sorted(ranks)
    assert read(config.parent / "study") == found
    assert (config.parent / "study/configs" / f"p{max(ranks):05d}.toml").is_file()


def test_the_order_is_random(write):
    config = write(run=RUN | {"workers": 8})
    options = {"mode": "strong", "ranks": [1, 2, 4, 8], "repeats": 5}
    orders = {plan(config, [f"run.seed={seed}"], options).order for seed in range(5)}
    assert len(orders) == 5
    repeats = np.array([launch.ranks for launch in orders.pop()]).reshape(5, 4)
    assert len({tuple(row) for row in repeats}) > 1


def test_rounds_and_warm_up(write):
    def lengths(run=RUN, **options):
        found = plan(write(run=run), [], {"mode": "strong", "ranks": [1]} | options)
        run = found.config.run
        return found.table.warm_up, found.table.rounds, run.rounds, run.evaluate_every, run.checkpoint_every

    assert lengths() == (5, 25, 30, 5, 0)  # the run of the config, its first block left out
    assert lengths(rounds=20) == (5, 20, 25, 5, 0)
    assert lengths(rounds=3) == (3, 3, 6, 3, 0)
    assert lengths(rounds=20, warm_up=10) == (10, 20, 30, 5, 0)
    assert lengths(warm_up=0) == (0, 30, 30, 5, 0)
    stopping = RUN | {"target_loss": 1.0, "max_seconds": 5.0, "checkpoint_every": 7, "out": "elsewhere"}
    assert lengths(run=stopping) == (5, 25, 30, 5, 0)
    found = plan(write(run=stopping), [], {"mode": "strong", "ranks": [1]}).config.run
    assert (found.target_loss, found.max_seconds) == (None, None)


def test_strong_keeps_everything_and_weak_the_rows_of_a_worker(write):
    options = {"ranks": [2, 4, 8]}
    strong = plan(write(run=RUN | {"workers": 8}), [], options | {"mode": "strong"})
    assert all(strong.config_of(p) == strong.config for p in (2, 4, 8))
    weak = plan(write(), [], options | {"mode": "weak"})
    tables = [weak.config_of(p).tables() for p in (2, 4, 8)]
    assert [table["run"].pop("workers") for table in tables] == [4, 8, 16]
    assert tables[0] == tables[1] == tables[2]
    assert tables[0]["problem"]["rows_per_worker"] == 5
    assert weak.config_of(8).problem.workers == 16
    assert weak.said() == "weak scaling: N = 2 P workers on P ranks; rows_per_worker = 5 stays"
    digits = plan(write(DIGITS | {"samples_per_worker": 20}), [], options | {"mode": "weak"})
    assert digits.said().endswith("samples_per_worker = 20 stays")


OWN = "def factory(workers, rows_per_worker=None):\n    return None\n"


@pytest.mark.parametrize(
    ("problem", "options", "reason"),
    [
        (DIGITS, {}, r"my\.toml: \[problem\] samples_per_worker: must be set for --mode weak"),
        ({"kind": "own:factory"}, {}, r"\[problem\] samples_per_worker or rows_per_worker: must be set"),
        (LEAST_SQUARES, {"ranks": [3, 4]}, "--ranks 4: run.workers = 4 on 3 ranks makes no whole number"),
        (LEAST_SQUARES, {"ranks": [8, 16]}, "workers = 4, but --ranks has 8"),
        (LEAST_SQUARES, {"mode": "strong", "ranks": [1, 5]}, "workers = 4, but --ranks has 5"),
        (LEAST_SQUARES, {"mode": "large"}, "--mode = 'large'"),
        (LEAST_SQUARES, {"ranks": [1, 1]}, "must be different numbers"),
        (LEAST_SQUARES, {"ranks": [0, 1]}, "--ranks"),
        (LEAST_SQUARES, {"repeats": 0}, "--repeats = 0"),
        (LEAST_SQUARES, {"warm_up": 7}, "--warm-up 7: must be a multiple of 5"),
        (LEAST_SQUARES, {"warm_up": 30}, "leaves none to time"),
        (LEAST_SQUARES, {"launcher": "srun -n 4"}, "must be a command with {ranks} in it"),
        (LEAST_SQUARES, {"launcher": "srun -n '{ranks}"}, "no closing quotation"),
        ({"kind": "logistic", "positive": 3}, {}, "samples_per_worker: must be set"),
    ],
)
def test_refused(write, tmp_path, problem, options, reason):
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(UserError, match=reason):
        plan(write(problem), [], {"mode": "weak", "ranks": [1, 2]} | options)


def test_a_factory_with_rows_per_worker(write, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = {"kind": "own:factory", "rows_per_worker": 7}
    assert plan(write(own), [], {"mode": "weak", "ranks": [1, 2]}).config_of(2).run.workers == 8


def test_a_directory_has_one_study(write, tmp_path):
    options = {"mode": "strong", "ranks": [1, 2], "repeats": 2}
    found = keep(plan(write(), [], options, by_point=True), tmp_path / "study")
    # the order in which it began stays
    assert keep(plan(write(), [], options), tmp_path / "study").order == found.order
    other = plan(write(), ["method.lr=0.1"], options | {"repeats": 3, "ranks": [1, 4]})
    with pytest.raises(UserError) as caught:
        keep(other, tmp_path / "study")
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/study: holds another study; choose another directory",
        "--ranks = [1, 4], but there [1, 2]",
        "--repeats = 3, but there 2",
        "[method] lr = 0.1, but there 0.05",
    ]
    with pytest.raises(UserError, match=r"a study goes on as scale\.toml says; --repeats, --set is for"):
        Wish(tmp_path / "study", ("method.lr=0.1",), {"repeats": 3, "mode": None}, None).plan("mpirun")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").touch()
    with pytest.raises(UserError, match=r"already holds config\.toml"):
        keep(found, tmp_path / "run")


# --- scaling.h5 ----------------------------------------------------------------------------------


def sample(**changes):
    numbers = dict.fromkeys(scaling.COLUMNS, 1) | {"seconds": 0.25, "rounds": 5}
    return numbers | {name: {"compute": 0.2, "files": 0.1} for name in scaling.PHASES} | changes


def test_the_file_of_samples(tmp_path):
    path = tmp_path / "scaling.h5"
    rows = [
        sample(),
        sample(ranks=2, seconds=0.125, phase_seconds={"compute": 0.1, "reduce.sum": 0.05}, overcommitted=1),
    ]
    scaling.write(path, {"mode": "strong", "warm_up": 5}, rows)
    for where in (path, tmp_path):
        tree = hpcopt.load(where)
        assert (tree.attrs["schema"], tree.attrs["schema_version"]) == ("hpcopt-scaling", 1)
        assert (tree.attrs["mode"], tree.attrs["warm_up"]) == ("strong", 5)
        samples = tree["samples"]
        assert set(samples.data_vars) == {*scaling.COLUMNS, *scaling.PHASES}
        assert samples["ranks"].values.tolist() == [1, 2]
        assert samples["seconds"].values.tolist() == [0.25, 0.125]
        assert samples["seconds"].attrs["units"] == samples["phase_seconds"].attrs["units"] == "s"
        assert samples["bytes_sent"].attrs["units"] == "B"
        assert samples["phase"].values.tolist() == ["compute", "files", "reduce.sum"]
        np.testing.assert_array_equal(samples["phase_seconds"], [[0.2, 0.1, np.nan], [0.1, np.nan, 0.05]])
        assert samples["phase_seconds"].dims == ("sample", "phase")
    with h5py.File(path) as file:  # as anybody reads it
        assert {item.attrs["units"] for item in file["samples"].values()} == {"1", "s", "B"}
        assert file["samples/phase_seconds"].dims[1].label == "phase"
    assert os.listdir(tmp_path) == ["scaling.h5"]


def test_files_that_are_none(tmp_path):
    path = tmp_path / "scaling.h5"
    with pytest.raises(UserError, match=r"no such file"):
        hpcopt.load(tmp_path)
    scaling.write(path, {}, [sample()])
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 2
    with pytest.raises(UserError, match=r"schema version 2, this one reads up to 1"):
        hpcopt.load(path)
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 1
        del file["samples/seconds"]
    with pytest.raises(UserError, match=r"scaling\.h5: not a readable scaling\.h5"):
        hpcopt.load(tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"not a readable run\.h5"):
        hpcopt.load(path)


# --- a study in its directory --------------------------------------------------------------------

# in place of mpirun: what a run of so many ranks leaves, or its last words
FAKE = """#!/bin/bash
cd {here}
ranks=$1 out=${{@: -1}}
name=$(basename $out)
echo $name >>calls
mkdir $out $out/checkpoints
[ ! -e $name.fails ] || {{ echo a word before; echo hpcopt: error: $(cat $name.fails) >&2; exit 4; }}
cp run$ranks.h5 $out/run.h5
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run."""
    problem = hpcopt.LinearRegression(4, dim=3, rows_per_worker=5)
    out = tmp_path_factory.mktemp("one") / "run"
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.05), problem, out=out, rounds=30, evaluate_every=5)
    return out


@pytest.fixture
def study(write, tmp_path, one):
    """A study of 1 and 2 ranks, three times each, whose launches cost nothing."""
    fake = tmp_path / "fake"
    fake.write_text(FAKE.format(here=tmp_path))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    options = {"mode": "strong", "ranks": [1, 2], "repeats": 3, "launcher": f"{fake} {{ranks}}"}
    found = plan(write(), [], options)
    for ranks in (1, 2):
        target = tmp_path / f"run{ranks}.h5"
        target.write_bytes((one / "run.h5").read_bytes())
        with h5py.File(target, "r+") as file:
            file.attrs["ranks"], file.attrs["cores"] = ranks, 1
    said = []
    return Study(tmp_path / "study", keep(found, tmp_path / "study"), said.append), said


def calls(study):
    return (study.directory.parent / "calls").read_text().splitlines()


def test_the_samples_are_the_runs(study, one):
    study, said = study
    assert study.run([1, 2])
    assert calls(study) == [launch.name for launch in study.plan.order]
    samples = hpcopt.load(study.directory)["samples"]
    one = hpcopt.load(one)
    assert one["metrics/round"].values.tolist() == [0, 5, 10, 15, 20, 25, 30]
    # the first block is the warm-up
    for name in ("seconds", "gradients", "bytes_sent"):
        blocks = np.diff(one[f"metrics/{name}"].values)[1:]
        np.testing.assert_array_equal(samples[name].values.reshape(6, 5), np.tile(blocks, (6, 1)))
    for name, key in zip(scaling.PHASES, ("seconds", "seconds_min", "seconds_mean"), strict=True):
        blocks = np.diff(one[f"phases/{key}"].values, axis=0)[1:]
        np.testing.assert_array_equal(samples[name].values.reshape(6, 5, -1), np.tile(blocks, (6, 1, 1)))
    assert samples["phase"].values.tolist() == one["phases/phase"].values.tolist()
    assert set(samples["rounds"].values) == {5}
    assert samples["block"].values.tolist() == [*range(5)] * 6
    for place, launch in enumerate(study.plan.order):
        here = samples["launch"].values == place
        assert set(samples["ranks"].values[here]) == {launch.ranks}
        assert set(samples["repeat"].values[here]) == {launch.repeat}
    # more ranks than cores: told once, and in the data
    assert samples["overcommitted"].values.tolist() == (samples["ranks"].values > 1).astype(int).tolist()
    assert sum("2 ranks on 1 core" in line for line in said) == 1
    assert not list(study.directory.glob("runs/*/checkpoints"))


def test_a_failure_ends_nobody_and_is_tried_again_when_asked(study, tmp_path):
    study, said = study
    bad = study.plan.order[1]
    (tmp_path / f"{bad.name}.fails").write_text("it is not finite")
    assert not study.run([1, 2])
    assert len(calls(study)) == 6
    (file,) = study.directory.glob("failed/*")
    failure = json.loads(file.read_text())
    assert file.name == f"{bad.name}.json"
    assert (failure["exit_code"], failure["message"], failure["ranks"]) == (4, "it is not finite", bad.ranks)
    assert any("failed (exit code 4): it is not finite" in line for line in said)
    assert len(set(hpcopt.load(study.directory)["samples"]["launch"].values)) == 5
    assert not study.run([1, 2])
    assert len(calls(study)) == 6
    (tmp_path / f"{bad.name}.fails").unlink()
    assert study.run([1, 2], retry=True)
    assert calls(study)[6:] == [bad.name]
    assert not list(study.directory.glob("failed/*"))
    assert len(set(hpcopt.load(study.directory)["samples"]["launch"].values)) == 6
    assert hpcopt.load(study.directory).attrs["end"]


def test_what_was_cut_off_is_made_again(study, monkeypatch):
    study, _ = study
    assert study.run([1])
    cut = study.missing([2])[0]  # and killed during the next one
    (study.directory / "runs" / cut.name).mkdir(parents=True)
    (study.directory / "runs" / cut.name / "config.toml").write_text("half a run")
    # a signal during the next one: not a failure
    monkeypatch.setattr(signals, "received", lambda: Counter(calls(study))[cut.name] > 0)
    with pytest.raises(Interrupted, match=r"go on with: hpcopt scale "):
        study.run([1, 2])
    assert not list(study.directory.glob("failed/*"))
    monkeypatch.undo()
    assert study.run([1, 2])
    assert not (study.directory / "runs" / cut.name / "config.toml").exists()
    assert set(calls(study)) == {launch.name for launch in study.plan.order}
    assert max(Counter(calls(study)).values()) == 1  # the interrupted one had ended all the same


def test_launches_that_are_not_what_the_plan_says(study, tmp_path):
    study, said = study
    with h5py.File(tmp_path / "run2.h5", "r+") as file:
        file.attrs["ranks"] = 1
    assert not study.run([1, 2])
    assert sum("not 2 but 1 rank started" in line for line in said) == 3
    assert set(hpcopt.load(study.directory)["samples"]["ranks"].values) == {1}
    assert "not made" not in said[-2]


def test_weak_with_other_rows_per_worker_is_none(study, write, tmp_path):
    study, said = study
    options = {"mode": "weak", "ranks": [1, 2], "repeats": 1, "launcher": study.plan.table.launcher}
    found = keep(plan(write(), [], options), tmp_path / "weak")
    with h5py.File(tmp_path / "run2.h5", "r+") as file:
        file.attrs["workers"] = 8  # with the rows of four
    assert not Study(tmp_path / "weak", found, said.append).run([1, 2])
    assert sum("rows per worker" in line and "failed" in line for line in said) == 1


def test_without_a_launcher(write, tmp_path):
    options = {"mode": "strong", "ranks": [1], "repeats": 1, "launcher": "nowhere/mpirun -n {ranks}"}
    found = keep(plan(write(), [], options), tmp_path / "study")
    with pytest.raises(UserError, match=r"nowhere/mpirun: cannot be started .*--launcher"):
        Study(tmp_path / "study", found, print).run([1])
    assert not list((tmp_path / "study").glob("failed/*"))


# --- Slurm ---------------------------------------------------------------------------------------

RESOURCES = {"ntasks_per_node": 2, "cpus_per_task": 1, "time": "10"}


@pytest.fixture
def chain(write, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    options = {"mode": "strong", "ranks": [1, 2, 4], "repeats": 2}
    wish = Wish(write(), (), options, tmp_path / "study")
    return prepare(wish, RESOURCES, None, None, retry=False)


def slurm(tmp_path, name, body):
    (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
    (tmp_path / "bin" / name).chmod(0o755)


def test_a_job_for_each_point_in_a_chain(chain, tmp_path):
    count = f"echo x >>{tmp_path}/n; echo $((100 + $(wc -l <{tmp_path}/n)))"
    slurm(tmp_path, "sbatch", count)
    assert not (tmp_path / "study").exists()
    assert chain.submit() == ["101", "102", "103", "104"]
    points = list(dict.fromkeys(launch.ranks for launch in read(tmp_path / "study").order))
    assert sorted(points) == [1, 2, 4]
    for place, name in enumerate([*(f"p{ranks:05d}" for ranks in points), "collect"]):
        text = (tmp_path / "study/jobs" / f"{name}.sbatch").read_text()
        waits = [line for line in text.splitlines() if "--dependency" in line]
        assert waits == ([f"#SBATCH --dependency=afterany:{100 + place}"] if place else [])
        ranks = points[place] if place < 3 else 1
        assert f"#SBATCH --nodes={-(-ranks // 2)}" in text.splitlines()
        assert f"#SBATCH --ntasks-per-node={min(ranks, 2)}" in text.splitlines()
        what = ["--points", str(ranks)] if place < 3 else ["--collect"]
        words = ["hpcopt", "scale", str(tmp_path / "study"), *what]
        assert "command=(\n" + "\n".join(f"  {word}" for word in words) + "\n)" in text


def test_a_refusal_leaves_none_of_the_chain_queued(chain, tmp_path):
    second = f"[ -e {tmp_path}/n ] && {{ echo 'sbatch: error: no more' >&2; exit 1; }}; touch {tmp_path}/n"
    slurm(tmp_path, "sbatch", f"{second}; echo 7")
    slurm(tmp_path, "scancel", f'echo "$@" >{tmp_path}/cancelled')
    with pytest.raises(UserError, match=r"^sbatch: no more$"):
        chain.submit()
    assert (tmp_path / "cancelled").read_text() == "7\n"


def test_a_site_says_how_ranks_are_started(write, tmp_path):
    site = tmp_path / "site.toml"
    wish = Wish(write(), (), {"mode": "strong", "ranks": [1]}, tmp_path / "study")
    for text, launcher in {
        'launcher = "mpirun"': "mpirun -n {ranks}",
        'mpi = "pmi2"\ngpus_per_task = 1': (
            "srun --mpi=pmi2 --kill-on-bad-exit=0 --wait=60 --cpu-bind=cores -n {ranks}"
        ),
    }.items():
        site.write_text(text)
        assert prepare(wish, RESOURCES, site, None, retry=False).plan.table.launcher == launcher
    with pytest.raises(UserError, match=r"hpcopt scale: --ntasks-per-node = -1"):
        prepare(wish, RESOURCES | {"ntasks_per_node": -1}, None, None, retry=False)
    with pytest.raises(UserError, match=r"--points 2: the study has 1"):
        prepare(wish, RESOURCES, None, [1, 2], retry=False)
