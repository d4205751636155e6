"""hpcopt submit and hpcopt jobs around Slurm's commands; a real Slurm is in tests/slurm."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from hpcopt.cluster import follow, jobs, registry
from hpcopt.cluster.slurm import SEPARATOR, NoAnswer, call
from hpcopt.cluster.submit import CONFIG, SCRIPT, Order, Sweep, prepare, submit
from hpcopt.errors import UserError
from hpcopt.ground.stamps import now

TOML = '[run]\nworkers = 8\n[problem]\nkind = "quadratic"\n'
RESOURCES = {"nodes": 2, "ntasks_per_node": 2, "cpus_per_task": 1, "time": "10"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory with a config, a home without anything, and a PATH with room for Slurm."""
    (tmp_path / "my.toml").write_text(TOML)
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def program(here, name, body):
    file = here / "bin" / name
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)


def order(here, **changes):
    changes = {"out": here / "run", "resources": RESOURCES} | changes
    return Order(here / "my.toml", **changes)


def refusal(here, **changes):
    with pytest.raises(UserError) as caught:
        prepare(order(here, **changes))
    return str(caught.value)


def test_the_job_is_handed_over_and_noted(here):
    program(here, "sbatch", f'printf "%s\\n" "$@" >{here}/arguments; echo "4711;cluster"')
    request, site = prepare(order(here, settings=("run.rounds=5",), out=here / "it's $(ls) é"))
    assert submit(request, site) == "4711"
    top = here / "it's $(ls) é"
    assert (here / "arguments").read_text().splitlines() == ["--parsable", str(top / SCRIPT)]
    assert (top / CONFIG).read_text() == TOML
    assert sorted(os.listdir(top)) == [SCRIPT, CONFIG]
    (entry,) = registry.entries()
    assert (entry.job, entry.name, entry.directories) == ("4711", "my", [str(top)])
    with pytest.raises(UserError, match=f"already holds {SCRIPT}; `sbatch "):
        submit(request, site)


def test_a_refusal_is_told_and_leaves_nothing(here):
    program(here, "sbatch", 'echo "sbatch: error: invalid partition specified: x" >&2; exit 1')
    request, site = prepare(order(here, out=here / "new" / "run"))
    with pytest.raises(UserError, match=r"^sbatch: invalid partition specified: x$"):
        submit(request, site)
    assert not (here / "new").exists()
    assert registry.entries() == []


def test_slurm_that_does_not_answer(here):
    # the child holds the pipes open, and must not outlive the limit either
    program(here, "sbatch", "echo 'sbatch: error: retrying' >&2; sleep 1000 & wait")
    request, site = prepare(order(here))
    start = time.monotonic()
    with pytest.raises(NoAnswer) as caught:
        submit(request, site, limit=0.5)
    assert time.monotonic() - start < 100  # the child sleeps for 1000
    for words in ("sbatch: no answer within 0.5 s", "slurmctld", "retrying", "not known: look with squeue"):
        assert words in str(caught.value)
    assert (here / "run" / SCRIPT).is_file()  # the job may be queued


def test_slurm_that_gives_up_before_the_limit(here):
    program(here, "sbatch", "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1")
    with pytest.raises(NoAnswer, match="Socket timed out"):
        submit(*prepare(order(here)))
    assert (here / "run" / SCRIPT).is_file()


def test_nonsense_instead_of_a_number(here):
    program(here, "sbatch", "echo Submitted")
    with pytest.raises(UserError, match="not a job's number: 'Submitted'"):
        submit(*prepare(order(here)))
    assert not (here / "run").exists()


def test_without_slurm(here, monkeypatch):
    monkeypatch.setenv("PATH", str(here / "bin"))
    with pytest.raises(UserError, match=r"sbatch: cannot be started .* login node"):
        submit(*prepare(order(here)))
    with pytest.raises(UserError, match="squeue: cannot be started"):
        jobs.table()


def test_a_directory_with_a_run_is_left_alone(here):
    (here / "run").mkdir()
    (here / "run" / "config.toml").touch()
    with pytest.raises(UserError, match=r"already holds config.toml; choose another directory"):
        submit(*prepare(order(here)))
    assert os.listdir(here / "run") == ["config.toml"]


def test_everything_is_checked_before(here):
    assert "workers = 8, but --nodes 5 times --ntasks-per-node 2 makes 10 ranks" in refusal(
        here, resources=RESOURCES | {"nodes": 5}
    )
    assert "[method] lr = -1" in refusal(here, array=("method.lr=0.1,-1.0",))
    assert "workers = 2" in refusal(here, array=("run.workers=8,2",))
    assert "must be TABLE.KEY=VALUE" in refusal(here, array=("lr=1",))
    assert "of its own anyway" in refusal(here, array=("run.out=a,b",))
    assert "two cases are the same" in refusal(here, array=("run.rounds=5,5",))
    assert "--nodes = -1" in refusal(here, resources=RESOURCES | {"nodes": -1})
    assert "--after" in refusal(here, after=("12,x",))
    assert "--job-name" in refusal(here, job_name="a\nb")
    assert "cannot be read" in refusal(here, profile=here / "none.toml")
    (here / "my.toml").write_text("[run]\nworker = 2\n")
    assert "did you mean 'workers'?" in refusal(here)


def test_an_array_has_a_directory_per_value(here):
    request, _ = prepare(order(here, array=("problem.eigenvalues=[1.0, 2.0],outliers",), after=("3,4", "5")))
    assert [element.settings for element in request.array] == [
        ("problem.eigenvalues=[1.0, 2.0]",),
        ("problem.eigenvalues=outliers",),
    ]
    assert request.array[0].directory == str(here / "run" / "problem.eigenvalues=_1.0,_2.0_")
    assert request.after == ("3", "4", "5")


def test_an_array_of_several_keys_and_more_than_the_site_allows(here):
    program(here, "sbatch", "echo 4711")
    program(here, "scontrol", "echo 'Configuration data'; echo 'MaxArraySize            = 5'")
    keys = ("method.lr=0.1,0.2", "run.seed=0:3")
    request, site = prepare(order(here, array=keys, array_at_once=2))
    assert [element.settings for element in request.array[:2]] == [
        ("method.lr=0.1", "run.seed=0"),
        ("method.lr=0.1", "run.seed=1"),
    ]
    assert request.array[5].directory == str(here / "run" / "method.lr=0.2,run.seed=2")
    told = r"--array: makes 6 tasks, and an array has at most 5 at this site \(MaxArraySize\); `--sweep"
    with pytest.raises(UserError, match=told):
        submit(request, site)
    assert not (here / "run").exists()
    program(here, "scontrol", "echo 'slurm_load_ctl_conf error: no' >&2; exit 1")  # sbatch will tell
    assert submit(request, site) == "4711"
    assert "--array-at-once: is for --array" in refusal(here, array_at_once=2)


def test_a_sweep_is_one_job(here):
    program(here, "sbatch", "echo 4711")
    many = Sweep(("method.lr=0.1,0.2", "run.seed=0:3"), ranks_each=4)
    request, site = prepare(order(here, sweep=many, settings=("run.rounds=5",)))
    assert submit(request, site) == "4711"
    (entry,) = registry.entries()
    assert (entry.directories, entry.array) == ([str(here / "run")], False)
    with pytest.raises(UserError, match=r"already holds job\.sbatch"):
        submit(request, site)
    assert "case lr=-1,seed=0: [method] lr = -1" in refusal(
        here, sweep=replace(many, over=("method.lr=-1", "run.seed=0"))
    )
    assert "--ranks-each 5: --nodes 2 times --ntasks-per-node 2 makes 4" in refusal(
        here, sweep=replace(many, ranks_each=5)
    )
    assert "each case has 9 ranks (--ranks-each)" in refusal(here, sweep=replace(many, ranks_each=9))
    assert "--over: is missing" in refusal(here, sweep=Sweep(()))
    assert "--sweep: needs a directory: --out DIR" in refusal(here, sweep=many, out=None)
    assert "take one of them" in refusal(here, sweep=many, array=("run.seed=0:2",))


def test_dry_run_needs_nothing_and_writes_nothing(here):
    hpcopt = os.path.join(os.path.dirname(sys.executable), "hpcopt")
    command = [
        hpcopt,
        "submit",
        "my.toml",
        "--nodes",
        "1",
        "--ntasks-per-node",
        "2",
        "--time",
        "10",
        "--dry-run",
    ]
    result = subprocess.run(
        command,
        env=os.environ | {"PATH": str(here / "bin")},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert result.stdout.startswith("#!/bin/bash\n")
    assert f"config={here / 'my.toml'}" in result.stdout
    assert sorted(os.listdir(here)) == ["bin", "my.toml"]


def test_no_call_outlives_its_limit_and_its_words_are_kept(here):
    program(here, "slow", "echo 'slow: error: one' >&2; echo 'slow: error: two' >&2; exit 3")
    with pytest.raises(UserError, match=r"^slow: one; two$"):
        call(["slow"])
    program(here, "mute", "exit 3")
    with pytest.raises(UserError, match=r"^mute: exit code 3$"):
        call(["mute"])


# --- jobs


def listed(here, *rows):
    """squeue as it answers to our format."""
    text = "\n".join(SEPARATOR.join(row) for row in rows)
    (here / "queue").write_text(text + "\n")
    program(here, "squeue", f"cat {here}/queue")


def ran(directory, *events, job="7", state=None, code=None):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text("[run]\nrounds = 50\n")
    (directory / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if state:
        line = {"job": job, "restart": 0, "state": state, "code": code}
        (directory / "status").write_text("half a li\n" + json.dumps(line) + "\n")


RECORD = {"event": "record", "round": 20.0, "seconds": 1.5, "loss": 0.25}


def test_the_table(here):
    ran(here / "a", RECORD, state="started")
    ran(here / "rates" / "1", RECORD, job="8_1", state="failed", code=4)
    when = now()
    rates = [str(here / "rates" / "0"), str(here / "rates" / "1")]
    registry.note(registry.Entry("8", "rates", str(here / "rates" / SCRIPT), rates, True, when))
    registry.note(registry.Entry("5", "old", "/x", [str(here / "old")], False, "2020-01-01T00:00:00+00:00"))
    registry.note(registry.Entry("6", "lost", "/y", [str(here / "lost")], False, when))
    with registry.place().open("a") as file:
        file.write("no json\n{}\n")
    listed(
        here,
        ("7", "RUNNING", "None", "0:10", "2", "hpcopt", str(here / "a" / SCRIPT), "odd | name"),
        ("8_0", "PENDING", "Resources", "0:00", "2", "the site's", str(here / "rates" / SCRIPT), "rates"),
        ("6", "RUNNING", "None", "0:10", "1", "(null)", "/bin/on/another/cluster", "not ours"),
        ("9", "RUNNING", "None", "0:10", "1", "(null)", "/bin/other", "not ours"),
    )
    text = jobs.table()
    lines = text.splitlines()
    assert lines[1].split()[:7] == ["7", "RUNNING", "0:10", "2", "20/50", "0.25", "started"]
    assert "odd | name" in lines[1]
    assert lines[1].endswith(str(here / "a"))
    assert lines[2].split()[:3] == ["8_0", "PENDING", "Resources"]
    assert lines[3].startswith("6    GONE")
    assert "ended without a word" in lines[3]
    assert "failed (4)" in lines[4]
    assert "FAILED" in lines[4]
    assert len(lines) == 5
    assert "not ours" not in text
    assert "old" in jobs.table(everything=True)


def test_a_script_submitted_again_by_hand_is_known(here):
    top = here / "rates"
    directories = [str(top / "0"), str(top / "1")]
    registry.note(registry.Entry("8", "rates", str(top / SCRIPT), directories, True, now()))
    listed(here, ("30_1", "RUNNING", "None", "0:10", "2", "hpcopt", str(top / SCRIPT), "rates"))
    assert [row.directory for row in jobs.rows() if row.id == "30_1"] == [top / "1"]


def test_no_jobs(here):
    listed(here)
    assert jobs.table() == "no jobs of hpcopt"


def test_following_until_the_end(here):
    ran(here / "a", {"event": "start", "time": "t", "round": 0}, RECORD, state="started")
    row = ("7", "RUNNING", "None", "0:10", "2", "hpcopt", str(here / "a" / SCRIPT), "a")
    listed(here, row)
    said = []

    def say(line):
        said.append(line)
        if "round 20/50" in line:  # the job goes on, ends, and is forgotten
            with (here / "a" / "log.jsonl").open("a") as log:
                log.write(json.dumps(RECORD | {"round": 50.0}) + "\n" + '{"event": "half')
            (here / "a" / "status").write_text('{"job": "7", "state": "done", "code": 0}\n')
            listed(here)

    assert follow.follow("7", say, poll=0.01, ask=0.02)
    assert said == [
        "7: RUNNING",
        "t start: round 0",
        "round 20/50  1.5 s  loss 0.25",
        "round 50/50  1.5 s  loss 0.25",
        f"{here / 'a'}: done, exit code 0",
    ]


def test_following_what_has_ended_or_never_was(here):
    listed(here)
    ran(here / "b", RECORD, state="failed", code=4)
    said = []
    assert not follow.follow("b", said.append)
    assert said[-1].endswith("b: failed, exit code 4")
    with pytest.raises(UserError, match="neither a job of hpcopt's"):
        follow.follow("nothing", said.append)
