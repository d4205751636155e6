"""Traces: written, read, made again to the bit; every way in which one can be wrong is told by its row."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hpcopt
from hpcopt.comm.mailbox.local_mailbox import LocalMailbox
from hpcopt.comm.ports import Agreed
from hpcopt.methods.parts.plan import Plan
from hpcopt.methods.parts.walk import Walk
from hpcopt.problems.base import Draw
from hpcopt.storage import journal
from hpcopt.storage import trace as traces
from hpcopt.storage.trace import Segment, Trace, readable
from hpcopt.storage.trace_file import TraceFile
from tests.unit.free_cases import DELAYS, DIM, ROUNDS, N, again, begun, free, problem, rate, snapshot
from tests.unit.plain_steps import UPDATES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rests", [(2, 3, 6), (6,)])
@pytest.mark.parametrize("delay", DELAYS)
def test_a_trace_makes_the_run_again(tmp_path, delay, rests, dtype):
    adaptive = {"lr_rule": "adaptive", "smoothness": 4.0, "lr_factor": 0.2}
    keys = adaptive if len(rests) > 1 else UPDATES["adamw"]
    run, models = free(tmp_path / "trace.h5", problem(dtype=dtype), DELAYS[delay], rests, **keys)
    other, all_models = again(tmp_path / "trace.h5", problem(dtype=dtype), **keys)
    for round, model in models.items():
        assert torch.equal(model, all_models[round])
    assert torch.equal(run.counts, other.counts)
    assert torch.equal(run.made, other.made)


def test_windows_that_were_over_before_they_began(tmp_path, monkeypatch):
    """Where gradients are quick, more are made before all ranks have heard than whole windows need."""
    monkeypatch.setattr(
        LocalMailbox, "agree", lambda self, made, goal: Agreed(made, 0) if made >= max(goal, 60) else None
    )
    _, models = free(tmp_path / "trace.h5", problem(), DELAYS["by slice"], (1, 2, 3, 6))
    segments = traces.read(tmp_path / "trace.h5").segments
    assert [len(segment.applied) for segment in segments] == [240, 0, 0, 144]
    _, others = again(tmp_path / "trace.h5", problem())
    assert all(torch.equal(model, others[round]) for round, model in models.items())


def test_fewer_parameters_than_workers(tmp_path):
    _, models = free(tmp_path / "trace.h5", problem(2), DELAYS["by slice"], (3, 6))
    _, others = again(tmp_path / "trace.h5", problem(2))
    assert all(torch.equal(model, others[round]) for round, model in models.items())


@pytest.mark.parametrize("update", [{}, UPDATES["adamw"]])
@pytest.mark.parametrize("delay", ["one worker is slow", "by slice", "full links"])
def test_it_goes_on_where_the_run_never_rested(tmp_path, delay, update):
    free(tmp_path / "trace.h5", problem(), DELAYS[delay], (6,), **update)
    whole, models = again(tmp_path / "trace.h5", problem(), **update)
    assert len(whole.past) + len(whole.waiting)
    for stop in range(1, ROUNDS):
        half, _ = again(tmp_path / "trace.h5", problem(), rounds=stop, **update)
        end, others = again(tmp_path / "trace.h5", problem(), snapshot(half), **update)
        assert all(torch.equal(models[round], model) for round, model in others.items())
        assert torch.equal(end.counts, whole.counts)


@given(data=st.data())
@settings(max_examples=10)
def test_what_a_round_has(data):
    """Each gradient once, none before its versions or after it is applied; a round no more than it needs."""
    table = data.draw(st.lists(st.integers(0, 40), min_size=13, max_size=13))
    delay = lambda origin, to, number: table[(5 * origin + 7 * to + number) % 13]  # noqa: E731
    method, state, _ = begun(problem(), delay, window=16)
    for _ in range(3):
        method.step(state)
        state.round += 1
    method.pause(state)
    trace = traced(method.trace(state), 3)
    versions, made, applied = [{0} for _ in range(N)], set(), []
    walk, _ = Plan(trace, N, DIM, 1, lambda stretch: Walk(stretch, N)).at(0)
    for round in range(3):
        for wave in walk.waves(round):
            for one in wave.gradients:
                assert all(version in known for version, known in zip(one.versions, versions, strict=True))
                made.add((one.worker, one.number))
            for one in wave.applied:
                assert {(one.worker, number) for number in one.numbers} <= made
                assert max(versions[one.to]) == one.version
                versions[one.to].add(one.version + len(one.numbers))
                applied.append(one)
        stamped = sum(one.round <= round for one in applied)
        assert stamped == (trace.segments[0].applied[:, 3] <= round).sum()
    assert len(applied) == len(trace.segments[0].applied)
    assert len(made) == len(trace.segments[0].gradients)


def traced(arrays, end, path="t"):
    return Trace(path, (Segment(end, arrays["gradients"], arrays["applied"], (0, 0)),), N, (N, DIM))


def test_changing_one_row_changes_the_curve(tmp_path):
    path = tmp_path / "trace.h5"
    free(path, problem(), DELAYS["by slice"], (3, 6))
    _, models = again(path, problem())
    with h5py.File(path, "r+") as file:
        gradients = file["gradients"][...]
        cut = int(file["segments/gradients"][0])
        # another version that there is: older by one, and gradients are applied one by one
        at = next(k for k in range(20, cut) if gradients[k, 2] > 1)
        file["gradients"][at, 2] -= 1
    _, others = again(path, problem())
    assert not torch.equal(models[3], others[3])


# --- CSV ----------------------------------------------------------------------------------------------------


def rows_of_csv(path, text):
    path.write_text(text)
    return str(path)


def test_a_csv_trace_is_the_recurrence(tmp_path):
    """x_{k+1} = x_k − η_round N ω_n ∇f_n(x_read), in NumPy; a round is the window, or what the file says."""
    order = [(0, 0), (1, 0), (0, 1), (3, 2), (2, 0), (0, 5), (3, 3), (1, 6)]
    bound, xs, drawn = problem(), [problem().initial().numpy()], [0] * N
    rounds = [0, 0, 1, 1, 1, 4, 4, 5]
    for file, stamps in (("window", [k // 3 for k in range(8)]), ("round", rounds)):
        head = "worker,read,round" if file == "round" else "worker, read"
        lines = [
            f"{n},{read}" + (f",{stamp}" if file == "round" else "")
            for (n, read), stamp in zip(order, stamps, strict=True)
        ]
        path = rows_of_csv(tmp_path / f"{file}.csv", "\n".join([head, *lines, ""]))
        xs, drawn = [bound.initial().numpy().copy()], [0] * N
        for (n, read), stamp in zip(order, stamps, strict=True):
            g = bound.gradients(torch.from_numpy(xs[read]), Draw(drawn[n]))[n].numpy()
            xs.append(xs[-1] - rate(stamp) * g)
            drawn[n] += 1
        method, state, _ = begun(problem(), mode="trace", trace=path, trace_out=False, window=3)
        for round in range(stamps[-1] + 1):
            assert method.step(state).done == (round == stamps[-1])
            state.round += 1
            made = sum(stamp <= round for stamp in stamps)
            assert np.allclose(state.x.numpy(), xs[made], rtol=1e-13, atol=0)
        assert (
            state.counts.sum(0)[:7].tolist()
            == np.bincount([k - read for k, (_, read) in enumerate(order)], minlength=7).tolist()
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("worker,read\n0,0\n4,0\n", r"line 3: its worker does not exist: there are workers 0 to 3"),
        ("worker,read\n\n0,0\n\n\n4,0\n", r"line 6: its worker does not exist"),
        ("\nworker,read\n\n0,0\n\n1,2\n", r"line 6: read = 2 refers to the future"),
        ("worker,read\n0,0\n1,2\n", r"line 3: read = 2 refers to the future: before this row 1 "),
        ("worker,read\n0,0\n1,-1\n", r"line 3: 1,-1: must not be negative"),
        ("worker,read\n0,0\n1\n", r"line 3: '1': must be 2 whole numbers"),
        ("worker,read\n0,0.5\n", r"line 2: '0,0.5': must be 2 whole numbers"),
        ("worker,read,round\n0,0,3\n0,0,2\n", r"line 3: round = 2 comes after round 3"),
        ("worker,read\n", r"has no rows"),
        ("rank,read\n0,0\n", r"begins with 'rank,read'; .*worker,read"),
        ("", r"begins with ''"),
        (None, r"there is no such file"),
    ],
)
def test_a_csv_file_that_is_wrong(tmp_path, text, words):
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(hpcopt.UserError, match=words) as caught:
        begun(problem(), mode="trace", trace=str(path), trace_out=False)
    assert str(path) in str(caught.value)


# --- trace.h5 -----------------------------------------------------------------------------------------------


def change(name, row, column, value):
    def done(file):
        file[name][row, column] = value

    return done


def swap(file):
    """Worker 0's first gradient is of what the slice became by it."""
    gradients = file["gradients"][...]
    at = int(np.flatnonzero(gradients[:, 0] == 0)[0])
    applied = file["applied"][...]
    mine = applied[applied[:, 0] == 0]
    version = int(mine[: int(np.flatnonzero(mine[:, 1] == 0)[0]) + 1, 2].sum())
    file["gradients"][at, 2] = version


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (change("gradients", 5, 0, 7), r"row 5 of /gradients, \[7, .*: its worker does not exist.* 0 to 3"),
        (change("applied", 5, 1, 9), r"row 5 of /applied, .*: its worker does not exist.* 0 to 3"),
        (change("applied", 5, 0, 4), r"row 5 of /applied, .*: its slice does not exist.* 0 to 3"),
        (change("applied", 5, 2, 0), r"row 5 of /applied, .*: at least 1 gradient"),
        (change("applied", 5, 2, 2), r"worker \d made \d+ gradients, but \d+ were applied to slice"),
        (change("applied", 5, 3, 9), r"row 5 of /applied, .*: of rounds 0 to 3 only"),
        (change("gradients", 5, 1, 9), r"row 5 of /gradients, .*: a trace has all mini-batches"),
        (change("gradients", 5, 3, -1), r"row 5 of /gradients, .*: must not be negative"),
        (change("gradients", 5, 3, 10**6), r"row 5 of /gradients, .*: slice 1 never had this version"),
        (swap, r"row \d+ of /gradients, .*: refers to the future"),
        (lambda file: file["applied"].resize(9, 0), r"made \d+ gradients, but \d+ were applied"),
        (lambda file: file.attrs.modify("workers", 8), r"arrays do not belong together"),
        (lambda file: file.attrs.modify("dim", 9), r"is of 4 workers and 9 parameters, but .* 7 parameters"),
        (lambda file: file.attrs.modify("schema", "x"), r"not a trace of hpcopt"),
        (lambda file: file.attrs.modify("schema_version", 2), r"not a trace of hpcopt, or of a newer one"),
        (lambda file: file.pop("applied"), r"has /gradients; free workers that own slices have"),
        (lambda file: file.pop("segments"), r"not a readable trace"),
        (lambda file: file["segments/round"].write_direct(np.array([3, 3])), r"do not belong together"),
    ],
)
def test_a_trace_that_is_wrong(tmp_path, wrong, words):
    path = tmp_path / "trace.h5"
    free(path, problem(), DELAYS["by slice"], (3, 6))
    with h5py.File(path, "r+") as file:
        wrong(file)
    with pytest.raises(hpcopt.UserError, match=words) as caught:
        begun(problem(), mode="trace", trace=str(path), trace_out=False)
    assert str(path) in str(caught.value)


def test_half_a_trace_is_told(tmp_path):
    path = tmp_path / "trace.h5"
    free(path, problem(), None, (6,))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(hpcopt.UserError, match="not a readable trace"):
        begun(problem(), mode="trace", trace=str(path), trace_out=False)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mode": "trace"}, "needs the path"),
        ({"trace": "a.csv"}, "needs the path"),
        ({"mode": "trace", "trace": "a.csv", "compensation": 0.1}, "compensation"),
        ({"mode": "trace", "trace": "a.csv", "lr_rule": "stability"}, "stability"),
    ],
)
def test_keys(keys, words):
    with pytest.raises(hpcopt.UserError, match=words):
        hpcopt.DelayedSGD(**keys)


# --- the file -----------------------------------------------------------------------------------------------


def segment(k, begin):
    rows = np.arange(begin, begin + k)
    return {"gradients": np.stack([rows] * 6, 1), "applied": np.stack([rows] * 4, 1)}


def test_rows_wait_and_rounds_are_cut_off(tmp_path):
    path, beside = tmp_path / "trace.h5", tmp_path / "trace.h5.journal"
    file = TraceFile(path, {"workers": 4, "dim": 9}, flush_seconds=1000)
    file.append(0, segment(0, 0))
    file.flush()
    assert not path.exists()
    for round, (k, begin) in {2: (5, 0), 4: (0, 5), 5: (3, 5), 9: (4000, 8)}.items():
        file.append(round, segment(k, begin))
    assert not path.exists()
    file.flush()
    parts = path.read_bytes(), beside.read_bytes()
    with h5py.File(path) as found:
        assert not len(found["segments/round"])
    file.close()
    whole = path.read_bytes(), b""
    assert len(whole[0]) < 60_000
    for round, ends in {9: [5, 5, 8, 4008], 8: [5, 5, 8], 5: [5, 5, 8], 4: [5, 5], 1: []}.items():
        # a file; what a kill leaves; and one that came between the file's new name and the journal's end
        for content, rest in (whole, parts, (whole[0], parts[1])):
            path.write_bytes(content)
            beside.write_bytes(rest)
            (tmp_path / "trace.h5.partial").write_bytes(b"what a kill left")
            other = TraceFile(path, {}, flush_seconds=0)
            other.begin(round)
            other.append(20, segment(2, 7))
            other.close()
            with h5py.File(path) as found:
                assert found["segments/round"][...].tolist() == [*[2, 4, 5, 9][: len(ends)], 20]
                end = (ends or [0])[-1]
                for name in ("gradients", "applied"):
                    assert found[f"segments/{name}"][...].tolist() == [*ends, end + 2]
                    assert found[name][:, 0].tolist() == [*range(end), 7, 8]
                assert dict(found.attrs)["workers"] == 4
            assert [*tmp_path.iterdir()] == [path]
    beside.write_bytes(parts[1])
    TraceFile(path, {}, 0).begin(0)
    assert not [*tmp_path.iterdir()]


def test_what_was_half_written_does_not_count(tmp_path):
    """Cut off anywhere, or with one byte changed: the entries before that are there."""
    path = tmp_path / "trace.h5.journal"
    ends = []
    for round in (1, 2, 3):
        journal.add(path, [(round, segment(round, 0))])
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for cut in (*range(0, len(whole), 41), len(whole)):
        path.write_bytes(whole[:cut])
        found = [round for round, _ in journal.entries(path)]
        assert found == [1, 2, 3][: sum(end <= cut for end in ends)]
    for at in range(0, len(whole), 31):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        found = list(journal.entries(path))
        assert len(found) == sum(end <= at for end in ends)
        assert all(np.array_equal(rows["applied"], segment(round, 0)["applied"]) for round, rows in found)


def test_appending_costs_what_is_new(tmp_path):
    """Whatever is there already: bytes written to the disk, by the system's count."""
    if not Path("/proc/self/io").exists():
        pytest.skip("the system does not count")

    def written():
        return int(Path("/proc/self/io").read_text().partition("wchar: ")[2].split()[0])

    file, costs = TraceFile(tmp_path / "trace.h5", {"workers": 4, "dim": 9}, flush_seconds=0), []
    for round in range(1, 61):
        before = written()
        file.append(round, segment(100, 100 * round))
        file.flush()
        costs.append(written() - before)
    assert max(costs[10:]) < 1.3 * min(costs[10:])
    file.close()
    assert len(traces.read(tmp_path / "trace.h5").segments) == 60


def test_a_full_disk_is_told_and_the_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "trace.h5"
    file = TraceFile(path, {"workers": 4, "dim": 9}, flush_seconds=1000)
    file.append(2, segment(5, 0))
    file.flush()
    before = {one: one.read_bytes() for one in tmp_path.iterdir()}

    def full(*arguments):
        if len(arguments) == 3:
            os.pwrite(arguments[0], b"half", arguments[2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpcopt.ground.files.write_at", full)
    file.append(3, segment(5, 5))
    with pytest.raises(hpcopt.UserError, match=r"trace\.h5\.journal: cannot be written \(No space left"):
        file.flush()
    monkeypatch.setattr(os, "posix_fallocate", full)
    file.close()  # no room for a copy: all of it stays in the journal
    assert {one: one.read_bytes() for one in tmp_path.iterdir()} == before
    with readable(path) as found:
        assert len(found["applied"]) == 5


WRITER = """
import sys
from pathlib import Path
from hpcopt.storage.trace_file import TraceFile
import numpy as np
file = TraceFile(Path(sys.argv[1]), {"workers": 4, "dim": 9}, flush_seconds=0)
for number in range(10**6):
    file.append(number + 1, {"applied": np.arange(3 * number, 3 * number + 3)[:, None]})
    file.flush()
    print(number + 1, flush=True)
"""


def test_a_kill_leaves_a_whole_file(tmp_path):
    path = tmp_path / "trace.h5"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        told = 0
        for pause in (0.0, 0.003, 0.011, 0.02):
            told = int(writer.stdout.readline())
            time.sleep(pause)
            os.kill(writer.pid, signal.SIGSTOP)  # as dead, for whoever reads now
            with readable(path) as file:
                rounds, ends = file["segments/round"][...], file["segments/applied"][...]
                assert np.array_equal(rounds, np.arange(len(rounds)) + 1)
                assert np.array_equal(ends, 3 * rounds)
                assert np.array_equal(file["applied"][:, 0], np.arange(3 * len(rounds)))
                assert len(rounds) >= told
            os.kill(writer.pid, signal.SIGCONT)
        writer.kill()
    TraceFile(path, {}, 0).begin(told)
    with h5py.File(path) as file:
        assert file["segments/round"][-1] == told
        assert len(file["applied"]) == 3 * told
