"""Formulas of costs against the ports' counters; the model against made-up machines and runs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import hpcopt
from hpcopt.cli import app
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.costs import runs as of_runs
from hpcopt.costs.extrap import write
from hpcopt.costs.machine import SHIPPED, load_machine
from hpcopt.costs.outlook import outlook, parse_ranks
from hpcopt.costs.prediction import Model
from hpcopt.costs.runs import Measured, Use, found
from hpcopt.costs.travel import Layout, Work, everybody, gossip, travel
from hpcopt.errors import UserError
from hpcopt.math.mixing import mixing

N, D = 8, 1000
HOP, BYTE, WORK = 5e-5, 1 / 12e6, 1e-10  # of the made-up machine
FIXED, EACH = 0.01, 0.03  # of computing


# --- formulas -------------------------------------------------------------------------------------------


def counted(ranks, use):
    """Bytes that a rank sent, of one use, as the twin counts them."""
    ports = LocalPorts(N, torch.zeros(D, dtype=torch.float64), ranks=ranks)
    counter = use(ports)
    assert counter.calls == 1
    return counter.bytes


def sum_(ports):
    ports.reduce.sum(torch.ones(N, D, dtype=torch.float64))
    return ports.reduce.counters["sum"]


def scatter(ports):
    ports.reduce.contribution(D).scatter()
    return ports.reduce.counters["scatter"]


def gather(ports):
    ports.reduce.allgather(torch.ones(D, dtype=torch.float64), D)
    return ports.reduce.counters["gather"]


def sparse(ports, exchange):
    port = ports.sparse_sum(torch.zeros(D, dtype=torch.float64), exchange)
    where = torch.arange(N * 10).view(N, 10)  # nobody's entries are another's
    port.sum(where, torch.ones(N, 10, dtype=torch.float64))
    return port.counter


def neighbours(ports, topology):
    port = ports.neighbours(torch.zeros(D, dtype=torch.float64), mixing(topology, "metropolis", N))
    port.mix(torch.ones(N, D, dtype=torch.float64), 0)
    return port.counter


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_formulas_are_what_ports_count(ranks):
    on, nbytes = Layout(ranks, 1, N), 8.0 * D
    for kind, use in (("sum", sum_), ("scatter", scatter), ("gather", gather)):
        assert travel(Work(kind, nbytes), on).sent == pytest.approx(counted(ranks, use))
    for topology in ("ring", "star", "complete"):
        work = Work("neighbours", nbytes, rows=gossip(topology, "metropolis"))
        want = counted(ranks, lambda ports, topology=topology: neighbours(ports, topology))
        assert travel(work, on).sent == pytest.approx(want)
    for exchange in ("allgather", "dense"):
        work = Work("sparse", 120.0, exchange=exchange, dim=D)
        want = counted(ranks, lambda ports, exchange=exchange: sparse(ports, exchange))
        # the formula lets entries of workers on one rank coincide by chance: 7 of 80
        assert travel(work, on).sent == pytest.approx(want, rel=0.04)


def test_what_leaves_a_host():
    """A ring of 8 workers, each on its rank, 2 ranks a host: one row to either side of a host."""
    rows = gossip("ring", "metropolis")
    assert rows(Layout(8, 4, 8)) == (2, 2, 16)
    assert rows(Layout(4, 4, 8)) == (2, 2, 8)
    assert rows(Layout(1, 1, 8)) == (0, 0, 0)
    assert everybody(Layout(4, 2, 8)) == (1.5, 2, 6)
    dense = travel(Work("sum", 1e6), Layout(8, 4, 8))
    assert (dense.within.nbytes, dense.between.nbytes) == (1e6, 1.5e6)
    assert (dense.within.hops, dense.between.hops) == (2, 4)
    assert travel(Work("sum", 1e6, ring=True), Layout(8, 8, 8)).between.hops == 14
    assert travel(Work("sum", 1e3, ring=True), Layout(8, 8, 8)).between.hops == 6


def test_ranks_of_equal_work():
    """One worker has most of it; of runs whose blocks were others nothing is assumed."""
    work = (61,) * 19 + (6413,)
    on, even = Layout(2, 1, 20, work=work), Layout(2, 1, 20)
    assert (on.fullest, even.fullest) == (19, 10)
    assert (on.heaviest, even.heaviest) == (20 * 6413 / sum(work), 10)
    assert on.owners.tolist() == [0] * 19 + [1]
    records = type("Found", (dict,), {"columns": property(dict.keys)})({"rows/round": np.array(work)})
    assert of_runs._work(records, [19, 1]) == work
    assert of_runs._work(records, [10, 10]) == of_runs._work(records, []) == ()


# --- made-up runs on a made-up machine ------------------------------------------------------------------


def truth(work, on):
    """Seconds of a use there."""
    of = travel(work, on)
    return of.between.hops * HOP + of.between.nbytes * BYTE + of.worked * WORK


def made_up(ranks, hosts=None, method="allreduce_sgd", nbytes=4e6, workers=N, loss=1.0, beside=0, **run):
    """A run of a method that takes one sum, or one average in a ring, a round."""
    on = Layout(ranks, hosts or ranks, workers, beside)
    gossips = method == "dpsgd"
    work = (
        Work("neighbours", nbytes, itemsize=4, rows=gossip("ring", "metropolis"))
        if gossips
        else Work("sum", nbytes, itemsize=4)
    )
    seconds, sent = truth(work, on), travel(work, on).sent * on.hosting
    payload = nbytes * (workers if gossips else on.hosting)
    use = Use("neighbours" if gossips else "reduce.sum", 1.0, payload, sent, np.full(3, seconds))
    table = {"topology": "ring", "mixing": "metropolis"} if gossips else {}
    config = {"run": {"dtype": "float32", "seed": 0, **run}, "method": table, "problem": {"kind": "made up"}}
    computing = FIXED + EACH * on.fullest
    curve = np.arange(4.0), np.array([4.0, 3.0, 2.0, loss])
    return Measured(
        path=Path("made/up/run.h5"),
        on=on,
        method=method,
        dim=int(nbytes) // 4,
        config=config,
        chosen={"reduction": "mpi"},
        crowded=False,
        rounds=np.ones(3),
        seconds=np.full(3, computing + seconds),
        compute=np.full(3, computing),
        uses=(use,),
        memory=3e8 + 1e7 * on.fullest,
        curve=curve,
    )


@pytest.mark.parametrize("method", ["allreduce_sgd", "dpsgd"])
def test_the_model_finds_the_machine_and_the_computing(method):
    model = Model([made_up(p, method=method, nbytes=m) for p in (1, 2, 4) for m in (4e6,)])
    row = model.predict(model.layout(8))
    want = made_up(8, method=method)
    assert row.seconds == pytest.approx(want.seconds[0], rel=1e-3)
    assert row.parts["compute"] == pytest.approx(FIXED + EACH)
    assert row.sent == pytest.approx(want.uses[0].sent / 8)
    assert row.memory == pytest.approx(3.1e8)
    assert row.low < row.seconds < row.high
    assert "runs on up to 4 ranks" in row.extrapolated
    assert not row.grown
    assert row.dense == (method == "allreduce_sgd")
    inside = model.predict(model.layout(2))
    assert not inside.extrapolated
    assert inside.high / inside.seconds < row.high / row.seconds


def test_one_number_of_ranks_says_nothing_about_work(tmp_path):
    """On another machine the seconds of a slow network are not taken for work in memory."""
    loaded, _ = load_machine("infiniband-hdr")
    row = Model([made_up(4)], loaded).predict(Layout(4, 4, N))
    assert row.parts["reduce.sum"] == pytest.approx(4 * 1.2e-6 + 6e6 / 24e9)
    own = Model([made_up(4)])
    assert own.predict(own.layout(4)).seconds == pytest.approx(made_up(4).seconds[0])


def test_above_n_ranks_n_grows():
    model = Model([made_up(p) for p in (1, 2, 4, 8)])
    row = model.predict(model.layout(64))
    assert (row.grown, row.on.workers, row.on.fullest) == (True, 64, 1)
    assert row.parts["compute"] == pytest.approx(FIXED + EACH)


def test_ranks_without_workers():
    made = [made_up(3, beside=1), made_up(5, beside=1)]
    mail = Use("beside", 0.1, 1e5, 2e5, np.full(3, 0.004))
    model = Model([replace(run, uses=(*run.uses, mail), seconds=run.seconds + 0.004) for run in made])
    row = model.predict(model.layout(9))
    assert (row.parts["beside"], row.sent_idle) == (0.004, 2e5)
    assert row.seconds == pytest.approx(made_up(9, beside=1).seconds[0] + 0.004, rel=0.01)
    assert (row.on.hosting, row.on.fullest, row.memory_idle) == (8, 1, pytest.approx(3e8))
    with pytest.raises(UserError, match="--ranks 1: 1 of them host no worker"):
        model.predict(model.layout(1))


def test_noise_widens_the_interval():
    quiet, noisy = ([made_up(p) for p in (1, 2, 4)] for _ in range(2))
    noisy = [replace(run, seconds=run.seconds * [0.8, 1.0, 1.2]) for run in noisy]
    widths = [row.high / row.low for row in (m.predict(m.layout(4)) for m in map(Model, (quiet, noisy)))]
    assert widths[0] == pytest.approx(1.05**2)
    assert widths[1] > 1.4


MACHINE = """
[machine]
name = "made up"
source = "this test"
date = "today"
[between]
latency = 5e-5
bandwidth = 12e6
burst = {burst}
{points}
"""


def machine(tmp_path, burst=0, points=""):
    file = tmp_path / "machine.toml"
    file.write_text(MACHINE.format(burst=burst, points=points))
    return file


def test_measured_points_of_a_machine_are_met_again(tmp_path):
    """Between them overheads are on lines; with more ranks than measured it is said."""
    lines = []
    for ranks in (2, 4):
        for nbytes in (1e3, 1e6, 8e6):
            work = Work("sum", nbytes, itemsize=4)
            hops = travel(work, Layout(ranks, ranks, ranks)).between.hops
            seconds = truth(work, Layout(ranks, ranks, ranks)) - WORK * nbytes + hops * 2e-3
            lines.append(
                f'[[between.points]]\nverb = "sum"\nranks = {ranks}\nbytes = {nbytes}\nseconds = {seconds}'
            )
    found_machine, digest = load_machine(machine(tmp_path, points="\n".join(lines)))
    assert len(digest) == 64
    model = Model([made_up(1)], found_machine)
    for ranks, beyond in ((2, []), (4, []), (8, ["sum: measured on up to 4 hosts"])):
        on = Layout(ranks, ranks, N)
        row = model.predict(on)
        hops = travel(Work("sum", 4e6), on).between.hops
        want = truth(Work("sum", 4e6), on) - WORK * 4e6 + hops * 2e-3
        assert row.parts["reduce.sum"] == pytest.approx(want, rel=1e-6)
        assert [text for text in row.extrapolated if "measured on" in text] == beyond


def test_a_burst_passes_free_and_links_fill(tmp_path):
    """T = h + max(c + (w − b)⁺ / B, w / B), w = 2 · 4 MB · 7/8."""
    burst, c, w, B = 2e6, 0.001, 7e6, 12e6
    loaded, _ = load_machine(machine(tmp_path, burst))
    fixed = 6 * HOP + WORK * 4e6
    for seconds in (c, 1.0):
        runs = [replace(made_up(1), compute=np.full(3, seconds * N), seconds=np.full(3, seconds * N + 4e-4))]
        row = Model(runs, loaded).predict(Layout(8, 8, N))
        assert row.seconds == pytest.approx(max(seconds + (w - burst) / B, w / B) + fixed, rel=1e-6)
        assert ("links full" in row.parts) == (seconds == c)


def test_what_overlaps_is_hidden_and_said(tmp_path):
    loaded, _ = load_machine(machine(tmp_path))
    model = Model([made_up(1, overlap=True)], loaded)
    row = model.predict(Layout(8, 8, N))
    assert row.hidden == pytest.approx(row.parts["compute"])
    assert row.seconds == pytest.approx(row.parts["reduce.sum"])
    assert row.high > row.seconds + row.hidden


# --- what is refused and what is said -------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of two methods on one problem; alone, on one rank."""
    home = tmp_path_factory.mktemp("runs")
    problem = hpcopt.LinearRegression(4, dim=2000, rows_per_worker=20)
    settings = {"rounds": 6, "evaluate_every": 2, "dtype": "float32"}
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.01), problem, out=home / "dense", **settings)
    hpcopt.run(hpcopt.TopK(lr=0.01, density=0.01), problem, out=home / "topk", **settings)
    return home


def test_of_runs_from_their_files(runs):
    both = outlook([runs / "dense", runs / "topk"], [2, 4, 64], "infiniband-hdr")
    assert [(row.on.ranks, row.grown) for row in both.rows[::2]] == [(2, False), (4, False), (64, True)]
    times = [row.target for row in both.rows[:2]]
    assert times == sorted(times)
    assert all(row.rounds > 0 for row in both.rows)
    said = "\n".join(both.remarks)
    assert "4 ranks: " in said
    assert " is best here" in said
    assert "above N ranks N grows with the ranks" in said
    # 2000 numbers are so few that hops decide, and a dense sum has the fewest
    dense = next(row for row in both.rows if row.method == "allreduce_sgd" and row.on.ranks == 4)
    assert dense.sent == 2 * 8000 * 3 / 4
    assert all("no sums were measured there" in " ".join(row.extrapolated) for row in both.rows)
    alone = outlook([runs / "dense"], [2], "ethernet-1gbit", target=-1.0)
    assert math.isnan(alone.rows[0].target)
    assert alone.remarks[-1] == "never reached a loss of -1: allreduce_sgd"


def test_dense_is_best_where_it_is():
    from hpcopt.costs import outlook as module

    models = {
        m: Model([made_up(p, method=m) for p in (1, 2, 4)], label=m) for m in ("allreduce_sgd", "dpsgd")
    }
    rows = sorted((m.predict(m.layout(4), 1.0) for m in models.values()), key=module._order)
    said = module._remarks(rows, models, None, 1.0, True)
    assert said[0].startswith("4 ranks: dense is best here (allreduce_sgd, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["c.toml", "--ranks", "4"], "a config cannot say how many parameters there are"),
        (["nowhere", "--ranks", "4"], "no such file; name a run's directory"),
        (["{dense}", "--ranks", "4"], "was measured on a single rank alone"),
        (["{dense}", "--ranks", "0"], "--ranks 0: allowed are whole numbers of ranks from 1 on"),
        (["{dense}", "--ranks", "4", "--machine", "mine"], "shipped are ethernet-1gbit, infiniband-edr"),
    ],
)
def test_refused(runs, arguments, message):
    arguments = [text.format(dense=runs / "dense") for text in arguments]
    ended = CliRunner().invoke(app, ["predict", *arguments])
    assert isinstance(ended.exception, UserError)
    assert ended.exception.exit_code == 2
    assert message in str(ended.exception)


@pytest.mark.parametrize(
    ("line", "replacement", "message"),
    [
        ("latency = 5e-5", "latency = -1.0", "between.latency = -1.0: input should be greater than 0"),
        ("burst = 0", "brust = 0", "between.brust: unknown key"),
        ('date = "today"', "", "machine.date: is missing"),
        ("[between]", "[betwixt]", "betwixt: unknown key"),
        ("bandwidth = 12e6", "bandwidth =", "not TOML"),
    ],
)
def test_wrong_machine_files(tmp_path, line, replacement, message):
    file = machine(tmp_path)
    assert line in file.read_text()
    file.write_text(file.read_text().replace(line, replacement))
    with pytest.raises(UserError, match=f"{file.name}: ") as error:
        load_machine(file)
    assert message in str(error.value)


def test_shipped_machines_name_their_sources():
    files = sorted(SHIPPED.glob("*.toml"))
    assert len(files) >= 4
    for file in files:
        found_machine, _ = load_machine(file.stem)
        assert "http" in found_machine.machine.source or "tools/" in found_machine.machine.source


def test_good_runs_are_used_and_bad_ones_named(runs, tmp_path):
    (tmp_path / "run.h5").write_bytes(b"nothing")
    good, troubles = found([runs / "dense", tmp_path])
    assert [run.method for run in good] == ["allreduce_sgd"]
    assert troubles[0].startswith(f"{tmp_path}/run.h5: not a readable run.h5")
    for text in ("", "4,x", "-3"):
        with pytest.raises(UserError, match="--ranks"):
            parse_ranks(text)


def test_only_the_last_job_of_a_run_counts(tmp_path):
    problem = hpcopt.LinearRegression(2, dim=5, rows_per_worker=10)
    settings = {"evaluate_every": 1, "checkpoint_every": 1}
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.01), problem, out=tmp_path, rounds=4, **settings)
    assert len(found([tmp_path])[0][0].rounds) == 3
    hpcopt.resume(tmp_path, problem=problem, overrides=("run.rounds=5",))
    with pytest.raises(UserError, match="its last job has 2 records; three are needed"):
        found([tmp_path])
    hpcopt.resume(tmp_path, problem=problem, overrides=("run.rounds=8",))
    assert len(found([tmp_path])[0][0].rounds) == 2


def test_input_of_extrap(tmp_path):
    model = Model([made_up(p) for p in (2, 4)])
    (file,) = write({"dense": model}, tmp_path / "e.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["callpath"] for line in lines} == {"round", "compute", "reduce.sum"}
    assert [line["params"] for line in lines if line["callpath"] == "round"] == [{"p": 2}, {"p": 4}]
    assert len(lines[0]["value"]) == 3
