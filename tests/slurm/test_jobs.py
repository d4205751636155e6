"""hpcopt submit and hpcopt jobs as users have them: a queue, a time limit, preemption, lost nodes, odd names.

What takes long happens at the same time: the scenarios began with the session and are looked at last.
"""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from customer import LONG, QUICK, SLOW, Customer, states, status
from scenarios import SCENARIOS

from hpcopt.config.methods import METHODS, method_table

ROOT = Path(__file__).resolve().parents[2]
HANG = 20  # seconds; the promise is an error within 15
# a problem with private parameters
HEADED = {"kind": "network", "dataset": "digits", "hidden": [8], "batch_size": 8}
MARGINS = {"dataset": "digits", "positive": 3}
SETTINGS = {"lr": 0.05, "density": 0.5, "largest": 3, "warmup": 10, "alpha": 0.1}
APART = ("allreduce_sgd", "regtopk", "deprl")  # dense sums, sparse ones, neighbours
RATES = ["0.01", "0.1"]
HOSTILE = """it's "$(touch canary)" `touch canary`; touch canary & é #%j \\"""


@pytest.fixture(scope="module")
def customer(cluster, home, scenarios):
    """A user of the session's cluster."""
    return Customer(cluster, home / "customer")


@pytest.fixture(scope="module")
def undisturbed(customer):
    """The slow problem's curve, in one go on one rank, without its pauses."""
    config = customer.write(
        "undisturbed", SLOW, run={"rounds": 800, "checkpoint_every": 0}, problem={"pause": 0.0}
    )
    customer.succeed("hpcopt", "run", config, "--out", customer.home / "undisturbed")
    (curve,) = customer.look(customer.home / "undisturbed")
    return curve


def same_curve(found, expected):
    """The same records and losses, as far as the shorter run goes: the learning rate is constant."""
    assert found["stopped_by"] == "rounds"
    every, last = found["config"]["run"]["evaluate_every"], found["config"]["run"]["rounds"]
    assert found["rounds"] == list(range(0, last + 1, every))
    same_losses(found, expected)


def same_losses(found, expected):
    assert found["rounds"] == expected["rounds"][: len(found["rounds"])]
    assert found["losses"] == pytest.approx(expected["losses"][: len(found["losses"])], rel=1e-6, abs=0)
    assert found["losses"][-1] < found["losses"][0]


# --- without a cluster, or with one that says no -------------------------------------------------


def test_a_dry_run_needs_no_slurm(customer):
    config = customer.write("dry", QUICK)
    hpcopt = Path(sys.executable).parent / "hpcopt"
    where = {key: old for key, old in os.environ.items() if not key.startswith("SLURM")}
    done = subprocess.run(
        [hpcopt, "submit", config, *["--nodes", "2", "--ntasks-per-node", "2", "--time", "5", "--dry-run"]],
        env=where | {"PATH": str(customer.home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
    assert "#SBATCH --nodes=2" in done.stdout.splitlines()


REFUSED = [
    (["--nodes", "-1"], "--nodes = -1"),
    (["--nodes", "0"], "--nodes = 0"),
    (["--ntasks-per-node", "-2"], "--ntasks-per-node = -2"),
    (["--nodes", "1e3"], "valid integer"),
    (["--job-name", "a\n#SBATCH --partition=urgent\ntouch canary"], "must be one line"),
    (["--job-name", ""], "--job-name"),
    (["--time", "$(touch canary)"], "--time"),
    (["--time", "-5"], "--time"),
    (["--after", "1;touch canary"], "--after"),
    (["--out", "runs/a\ntouch canary"], "must be one line"),
    (["--set", "method.lr=$(touch canary)"], "[method] lr = '$(touch canary)'"),
    (["--set", "run.seed=1\ntouch canary"], "[run] seed"),
    (["--array", "method.lr=$(touch canary),1"], "[method] lr = '$(touch canary)'"),
    (["--nodes", "3"], "6 ranks"),
]
SLURM_SAYS_NO = [
    ('partition = "no where"', "sbatch: invalid partition specified: no where"),
    ('partition = "$(touch canary)"', "sbatch: invalid partition specified: $(touch canary)"),
    ('constraint = "a100"', "sbatch: Batch job submission failed: Invalid feature specification"),
    ('extra = ["--gres=fpga:1"]', "sbatch: Invalid generic resource (gres) specification"),
    ('reservation = "monday"', "eservation"),
]


@pytest.fixture(scope="module")
def refusals(customer):
    """Exit codes and messages of hpcopt submit for these, in one process; nothing has been run or queued."""
    sizes = ["--nodes", "2", "--ntasks-per-node", "2", "--time", "5"]
    config, wide = customer.write("refused", QUICK), customer.write("no", QUICK, run={"workers": 8})
    commands = [[config, *sizes, "--out", customer.home / "refused", *options] for options, _ in REFUSED]
    for number, (profile, _) in enumerate(SLURM_SAYS_NO):
        site = customer.home / f"site-{number}.toml"
        site.write_text(profile)
        commands.append([wide, *sizes, "--out", customer.home / "no", "--profile", site])
    cases = customer.home / "refused.json"
    cases.write_text(json.dumps([["submit", *map(str, command)] for command in commands]))
    queued = ("squeue", "-h", "-t", "all", "-o", "%i")
    before = customer.succeed(*queued)
    printed = customer.succeed("python", ROOT / "tests/faults/batch.py", cases, "alone", limit=LONG)
    assert customer.succeed(*queued) == before
    assert no_canary(customer)
    assert not any((customer.home / name).exists() for name in ("refused", "no"))
    ends = [json.loads(line) for line in printed.splitlines()]  # nothing else is printed on stdout
    assert len(ends) == len(commands)
    return [(*end["codes"], *end["texts"]) for end in ends]


@pytest.mark.parametrize("case", range(len(REFUSED)), ids=[reason for _, reason in REFUSED])
def test_refused_before_it_is_queued(refusals, case):
    refused(refusals[case], REFUSED[case][1])


@pytest.mark.parametrize("case", range(len(SLURM_SAYS_NO)), ids=[profile for profile, _ in SLURM_SAYS_NO])
def test_slurm_says_no(refusals, case):
    text = refused(refusals[len(REFUSED) + case], SLURM_SAYS_NO[case][1])
    assert len(text.splitlines()) == 1


def refused(end, reason):
    """hpcopt submit says no in its own or Slurm's words."""
    code, text = end
    assert code == 2, end
    assert reason in text
    assert "Traceback" not in text
    return text


def no_canary(customer):
    return not any((place / "canary").exists() for place in (ROOT, Path.cwd(), customer.home, Path.home()))


# --- ordinary days -------------------------------------------------------------------------------


def test_every_method_as_under_mpirun(customer):
    """On four ranks of two hosts, and one of each port on a rank of each, in one job; and without Slurm."""
    configs = {}
    for method in METHODS:
        table = method_table(method)
        keys = table.model_fields.keys() & SETTINGS.keys()
        tables = QUICK | {"method": {key: SETTINGS[key] for key in keys}}
        if method == "deprl":
            tables |= {"problem": HEADED}
        if table.kinds:
            tables |= {"problem": MARGINS | {"kind": table.kinds[0]}}
        # those for linear models are there before the others have begun
        length = {"rounds": 3, "evaluate_every": 1} if table.kinds else {}
        configs[method] = customer.write(method, tables, run={"method": method} | length)
    # the last rank, on a host where others make rounds, computes eigenpairs beside them
    beside = {"variant": "concurrent", "refresh_every": 15, "handover_rounds": 10}
    tables = QUICK | {
        "method": {key: SETTINGS[key] for key in ("lr", "largest", "alpha")} | {"warmup": 5} | beside
    }
    run = {"method": "dho2", "curvature_ranks": 1}
    configs["dho2 beside"] = customer.write("dho2 beside", tables, run=run)

    def together(where, methods=configs):
        runs = ((configs[method], customer.home / f"{method}-{where}") for method in methods)
        return ["python", "-m", "mpi4py", ROOT / "tests/slurm/methods.py", *itertools.chain(*runs)]

    # one after another: ranks that wait for each other on crowded cores take many times as long
    customer.succeed("mpirun", "-n", 2, *together("mpirun"), limit=LONG)
    wide = shlex.join(map(str, ["srun", "--mpi=pmix", *together("srun")]))
    apart = ["srun", "--mpi=pmix", "--ntasks=2", "--ntasks-per-node=1", *together("apart", APART)]
    options = ["--nodes=2", "--ntasks-per-node=2", f"--output={customer.home}/together"]
    both = f"{wide} && {shlex.join(map(str, apart))}"
    job = customer.succeed("sbatch", "--parsable", *options, "--wrap", both).strip()
    customer.complete(job)

    under = {customer.home / f"{method}-srun": (method, 4) for method in configs}
    under |= {customer.home / f"{method}-apart": (method, 2) for method in APART}
    looked = customer.look(*under, *(customer.home / f"{method}-mpirun" for method in configs))
    references = dict(zip(configs, looked[len(under) :], strict=True))
    for (method, ranks), found in zip(under.values(), looked, strict=False):
        expected = references[method]
        assert found["config"]["run"]["method"] == expected["config"]["run"]["method"] == method.split()[0]
        assert (found["ranks"], found["hosts"]) == (ranks, ["n1", "n2"]), method
        assert expected["ranks"] == 2
        assert len(expected["hosts"]) == 1
        assert found["stopped_by"] == ("method" if method == "averaging" else "rounds")
        same_losses(found, expected)
        assert [(one["slurm_job"], one["slurm_restart"]) for one in found["jobs"]] == [(job, "")]


@pytest.fixture(scope="module")
def chain(customer):
    """A job, an array after it, a job after that: on their way while another test runs."""
    config = customer.write("chain", QUICK)
    small = {"nodes": 1, "tasks": 1}
    first = customer.submit(config, out="first", **small)
    array = customer.submit(
        config, "--array", f"method.lr={','.join(RATES)}", "--after", first, out="array", **small
    )
    last = customer.submit(config, "--after", array, out="last", **small)
    assert "Dependency" in customer.table()[last]
    return first, array, last


@pytest.mark.usefixtures("chain")
def test_a_free_run_on_two_hosts_is_made_again_on_one(customer):
    """What no two runs share, the order in which vectors came from host to host, is all in the trace."""
    free = {"mode": "free", "window": 40, "trace_out": True, "lr": 0.02}
    config = customer.write("free", QUICK, run={"method": "delayed_sgd", "workers": 6}, method=free)
    customer.complete(customer.submit(config, tasks=1))
    again = {"mode": "trace", "trace": str(customer.home / "free/trace.h5"), "trace_out": False}
    config = customer.write("again", QUICK, run={"method": "delayed_sgd", "workers": 6}, method=free | again)
    customer.succeed("mpirun", "-n", 1, "hpcopt", "run", config, "--out", customer.home / "again", limit=LONG)
    first, second = customer.look(customer.home / "free", customer.home / "again")
    assert (first["hosts"], first["ranks"], second["ranks"]) == (["n1", "n2"], 2, 1)
    assert first["rounds"] == second["rounds"]
    assert first["losses"] == pytest.approx(second["losses"], rel=1e-12, abs=0)


def test_an_array_in_a_chain(customer, chain):
    first, array, last = chain
    customer.complete(last)
    top = customer.home / "array"
    runs = [top / f"method.lr={rate}" for rate in RATES]
    assert sorted(path.name for path in top.iterdir() if path.is_dir()) == sorted(run.name for run in runs)
    found = customer.look(*runs)
    assert [run["config"]["method"]["lr"] for run in found] == [float(rate) for rate in RATES]
    assert all(run["rounds"] == list(range(0, 31, 5)) for run in found)
    assert len({run["losses"][-1] for run in found}) == len(RATES)

    chain = [[customer.home / "first"], runs, [customer.home / "last"]]
    times = [[(status(run)[0]["time"], status(run)[-1]["time"]) for run in link] for link in chain]
    for before, after in itertools.pairwise(times):
        assert max(end for _, end in before) <= min(start for start, _ in after)
    table = customer.table()
    for job in (first, last, *(f"{array}_{task}" for task in range(len(RATES)))):
        assert "COMPLETED" in table[job]
        assert "done (0)" in table[job]


def test_the_table_and_scancel(customer, undisturbed):
    small = {"nodes": 1, "tasks": 1}
    diverging = customer.submit(
        customer.write("diverging", QUICK, run={"rounds": 2000}), "--set", "method.lr=1e3", **small
    )
    assert customer.ended(diverging)["ExitCode"] == "4:0"
    running = customer.submit(customer.write("slow", SLOW, run={"rounds": 600}), nodes=1)
    customer.until_round(customer.home / "slow", 20, running)
    (customer.home / "exclusive.toml").write_text('extra = ["--exclusive"]')
    wide = customer.write("wide", QUICK)
    waiting = customer.submit(wide, "--profile", customer.home / "exclusive.toml")
    orphan = customer.submit(customer.write("orphan", QUICK), "--after", running, **small)
    customer.until(
        lambda: customer.cluster.record(waiting).get("Reason") == "Resources", "Resources", 30, waiting
    )
    table = customer.table()
    for job, words in {
        diverging: ("FAILED", "failed (4)"),
        running: ("RUNNING", "/600 ", "started"),
        waiting: ("PENDING", "Resources"),
        orphan: ("PENDING", "Dependency"),
    }.items():
        assert all(word in table[job] for word in words), table[job]

    customer.succeed("scancel", running, waiting)
    assert customer.ended(running)["JobState"] == "CANCELLED"
    assert customer.ended(orphan)["JobState"] == "CANCELLED"  # and does not wait for ever
    assert "CANCELLED" in customer.table()[running]
    run = customer.home / "slow"
    assert "requeued" not in states(run)
    customer.succeed("hpcopt", "resume", run, "--set", "problem.pause=0.0")
    (found,) = customer.look(run)
    same_curve(found, undisturbed)
    assert [(job["slurm_job"], job["ranks"]) for job in found["jobs"]] == [(running, 2), ("", 1)]
    assert found["jobs"][1]["round"] >= 20


def test_hostile_names_run(customer):
    config = customer.write("it's $(touch canary)", QUICK)
    out = "out 'of' $(touch canary) %j é"
    job = customer.submit(
        config, "--job-name", HOSTILE, "--set", 'method.schedule="cosine"', nodes=1, tasks=1, out=out
    )
    assert customer.succeed("squeue", "-h", "-t", "all", "-j", job, "-o", "%j").strip() == HOSTILE
    customer.complete(job)
    (found,) = customer.look(customer.home / out)
    assert found["config"]["method"]["schedule"] == "cosine"
    line = customer.table()[job]
    assert HOSTILE in line
    assert line.endswith(str(customer.home / out))
    assert (customer.home / out / f"slurm-{job}.out").is_file()
    assert no_canary(customer)
    again = customer.call(
        "hpcopt",
        "submit",
        config,
        *["--nodes", "1", "--ntasks-per-node", "1", "--time", "5"],
        "--out",
        customer.home / out,
    )
    assert again.returncode == 2
    assert "already holds" in again.stderr


def test_the_scripts_in_jobs(customer):
    quick, slow = customer.write("quick", QUICK), customer.write("pauses", SLOW, run={"rounds": 100})

    def sbatch(script, config, *more, **env):
        out = customer.home / script
        options = ("--parsable", f"--output={customer.home}/{script}-%j.out", *more)
        where = {"CONFIG": str(config), "OUT": str(out)} | env
        printed = customer.succeed("sbatch", *options, ROOT / f"jobs/{script}.sbatch", env=where)
        return out, printed.strip()

    preempted, long = sbatch("preemptible", slow, "--ntasks-per-node=1")
    plain, short = sbatch("cpu", quick)
    rates, sweep = sbatch("sweep", quick, "--ntasks-per-node=1")
    packed, many = sbatch("sweep-packed", quick)
    seeds = ("--sweep", "--over", "run.seed=0:3", "--ranks-each", 2)
    own = customer.submit(quick, *seeds, out="own sweep", nodes=1)
    # the box has GPUs in name only, so this run uses the CPU
    gpu, asked = sbatch("gpu", quick, "--cpus-per-task=1")
    scaling, points = sbatch("scale", quick, RANKS="1,2", REPEATS="1")
    log = preempted / "log.jsonl"
    customer.until(lambda: log.is_file() and log.read_text().count('"record"') > 1, "two records", LONG, long)
    customer.succeed("scancel", "--signal=USR1", long)

    customer.complete(short)
    customer.complete(sweep)
    customer.complete(asked)
    customer.complete(many)
    customer.complete(own)
    customer.complete(points)
    record = customer.complete(long)
    assert record["Restarts"] == "1"
    assert scaled(customer, scaling) == {"1": 5, "2": 5}
    assert [(line["code"], line["restart"]) for line in status(preempted)] == [(75, 0), (0, 1)]
    runs = [rates / f"method.lr={rate}" for rate in ("0.01", "0.03", "0.1", "0.3")]
    found = customer.look(preempted, plain, *runs, gpu)
    assert all(run["stopped_by"] == "rounds" for run in found)
    assert [job["slurm_restart"] for job in found[0]["jobs"]] == ["", "1"]
    assert found[0]["rounds"] == list(range(0, 101, 5))
    assert [run["config"]["method"]["lr"] for run in found[2:-1]] == [0.01, 0.03, 0.1, 0.3]
    cases = [
        packed / f"cases/lr={rate},seed={seed}" for rate in ("0.01", "0.03", "0.1", "0.3") for seed in (0, 1)
    ]
    cases += [customer.home / f"own sweep/cases/seed={seed}" for seed in range(3)]
    ended = customer.look(*cases)
    assert all((run["stopped_by"], run["ranks"], len(run["hosts"])) == ("rounds", 2, 1) for run in ended)
    assert {host for run in ended[:8] for host in run["hosts"]} == {"n1", "n2"}
    assert states(customer.home / "own sweep") == ["started", "done"]
    table = customer.table()
    assert all("COMPLETED" in table[job] for job in (short, long, many, own, f"{sweep}_3"))


def test_a_scaling_study_is_a_chain_of_jobs(customer):
    """One for each point, and a last one that collects; and meanwhile as ReFrame has it."""
    config, top = customer.write("points", QUICK), customer.home / "points"
    options = ["--mode", "weak", "--ranks", "1,2", "--repeats", "1", "--out", top]
    queue = ["--submit", "--ntasks-per-node", 1, "--time", 5]
    jobs = customer.succeed("hpcopt", "scale", config, *options, *queue).split()
    assert len(jobs) == 3
    reframe = ["reframe", "-C", ROOT / "jobs/reframe/settings.py", "-c", ROOT / "jobs/reframe/scaling.py"]
    where = [f"--prefix={customer.home}/reframe", f"--report-file={customer.home}/reframe.json"]
    what = ["--system=box", "-E", 'mode == "weak"', "-S", "settings=run.rounds=40", "--run"]
    said = customer.succeed(*reframe, *where, *what, env={"HPCOPT_RANKS": "1,2"}, limit=LONG)
    assert "Ran 2/2 test case(s) from 2 check(s) (0 failure(s)" in said
    seen = json.loads((customer.home / "reframe.json").read_text())["runs"][0]["testcases"]
    assert [case["result"] for case in seen] == ["pass", "pass"]
    assert {name.split(":")[-1] for case in seen for name in case["perfvalues"]} == {
        "seconds_per_round",
        "speedup",
        "efficiency",
    }
    customer.complete(jobs[-1])
    assert scaled(customer, top) == {"1": 5, "2": 5}
    # the order of the plan, one after the other
    lines = [line for line in status(top) if line["state"] in ("started", "done")]
    assert [line["job"] for line in lines] == [job for job in jobs for _ in range(2)]
    runs = [top / "runs" / f"p0000{ranks}-r00" for ranks in (1, 2)]
    assert [(run["ranks"], len(run["hosts"])) for run in customer.look(*runs)] == [(1, 1), (2, 2)]
    table = customer.table()
    assert all("COMPLETED" in table[job] and "done (0)" in table[job] for job in jobs)


def scaled(customer, directory):
    """Number of ranks -> samples of a study."""
    look = (
        "import collections, json, sys, hpcopt\n"
        "ranks = hpcopt.load(sys.argv[1])['samples/ranks'].values.tolist()\n"
        "print(json.dumps(collections.Counter(ranks)))"
    )
    return json.loads(customer.succeed("python", "-c", look, directory))


# --- a controller that does not answer -----------------------------------------------------------


def test_nothing_hangs_without_the_controller(home, boxes):
    customer = Customer(boxes("mute"), home / "mute")
    config = customer.write("mute", QUICK)
    sizes = ["--nodes", "1", "--ntasks-per-node", "1", "--time", "5"]
    commands = {
        "submit": ("hpcopt", "submit", config, *sizes, "--out", customer.home / "mute"),
        "jobs": ("hpcopt", "jobs"),
        "follow": ("hpcopt", "jobs", "--follow", "1"),
    }

    def ask(name):
        start = time.monotonic()
        done = customer.call(*commands[name], limit=HANG)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert "Traceback" not in done.stderr
        print(f"{name}: {time.monotonic() - start:.1f} s: {done.stderr}")
        return done.stderr

    controllers = controllers_of(customer.cluster)
    try:
        for process in controllers:
            os.kill(process, signal.SIGSTOP)
        with ThreadPoolExecutor(3) as threads:
            said = dict(zip(commands, threads.map(ask, commands), strict=True))
    finally:
        for process in controllers:
            os.kill(process, signal.SIGCONT)
    assert all("is Slurm's controller (slurmctld) down?" in text for text in said.values())
    assert "look with squeue" in said["submit"]

    # it is alive again, and what was asked for meanwhile is either queued or can be
    script = customer.home / "mute" / "job.sbatch"
    assert script.is_file()
    customer.until(lambda: customer.call("hpcopt", "jobs").returncode == 0, "an answer", 60, "0")
    if not customer.succeed("squeue", "-h", "-t", "all", "-o", "%i").split():
        customer.succeed("sbatch", script)
    (job,) = customer.succeed("squeue", "-h", "-t", "all", "-o", "%i").split()
    customer.complete(job)
    assert job in customer.table()

    for process in controllers:  # and now it is gone
        os.kill(process, signal.SIGKILL)
    commands["submit"] = ("hpcopt", "submit", config, *sizes, "--out", customer.home / "gone")
    with ThreadPoolExecutor(3) as threads:
        said = dict(zip(commands, threads.map(ask, commands), strict=True))
    assert all("slurm" in text.lower() for text in said.values())


def controllers_of(cluster):
    """The processes of a cluster's slurmctld."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            what = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if what.startswith(b"slurmctld") and str(cluster.folder / "etc/slurm.conf").encode() in what:
            found.append(int(folder.name))
    assert found
    return found


# --- what began first ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_disturbed_job_finishes(scenarios, undisturbed, name):
    story = scenarios[name].result()  # whose every wait has its limit
    (found,) = story.customer.look(story.run)
    printed = Path(story.record["StdOut"]).read_text()
    told = f"{found['jobs']}\n{status(story.run)}\n{story.customer.cluster.tails(story.record['StdOut'])}"
    same_curve(found, undisturbed)

    restarts = [int(job["slurm_restart"] or 0) for job in found["jobs"]]
    assert len(restarts) >= 2, told
    assert restarts == sorted(set(restarts)), told
    last = int(story.record["Restarts"])
    # killed between its last round and its end, a job starts once more and finds nothing left to do
    idle = printed.count("already finished at round")
    assert (restarts[0], restarts[-1] + idle) == (0, last), told
    assert {job["slurm_job"] for job in found["jobs"]} == {story.job}
    begun = [job["round"] for job in found["jobs"]]
    assert begun[0] == 0
    assert begun == sorted(begun)
    assert begun[-1] >= (20 if name == "time_limit" else 30), told  # not from the beginning again
    assert {job["ranks"] for job in found["jobs"]} == {story.ranks}

    lines = status(story.run)
    assert [line["restart"] for line in lines if line["state"] == "started"] == list(range(last + 1))
    assert (lines[-1]["state"], lines[-1]["code"]) == ("done", 0)
    if name == "time_limit":
        assert {line["code"] for line in lines if line["state"] == "requeued"} == {75}, told
    elif name in ("requeue", "preemption"):
        assert restarts == [0, 1], told
    # a lost node: after a minute Slurm tries again to end the lost tasks, and if the node is back by then,
    # that meets the requeued job's step of the same number: one more failure to come back from
    assert printed.count("going on from round") == len(restarts) - 1, told  # appended
    line = story.customer.table()[story.job]
    assert "COMPLETED" in line
    assert "done (0)" in line
