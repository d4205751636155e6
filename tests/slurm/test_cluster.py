"""The cluster in a box: hosts, links, Slurm, and nothing left of them afterwards."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

WHO = """
import json, socket
import numpy as np
from mpi4py import MPI

world = MPI.COMM_WORLD
total = np.empty(500_000)
world.Allreduce(np.full(500_000, world.rank + 1.0), total)
beside = world.Split_type(MPI.COMM_TYPE_SHARED).size
found = world.gather((socket.gethostname(), beside, total.min(), total.max()))
if world.rank == 0:
    print(json.dumps(found))
"""
CONFIG = """
[run]
method = "allreduce_sgd"
workers = 8
rounds = 30
evaluate_every = 3
device = "cpu"
[method]
lr = 0.05
[problem]
kind = "linear_regression"
dim = 40
rows_per_worker = 50
"""
CURVE = """
import json, sys
import hpcopt
metrics = hpcopt.load(sys.argv[1])["metrics"]
print(json.dumps([metrics["round"].values.tolist(), metrics["loss"].values.tolist()]))
"""
ROOT = Path(__file__).resolve().parents[2]
SRUN = ("srun", "--nodes=2", "--ntasks-per-node=2", "--mpi=pmix")
EXPECTED = [["n1", 2, 10.0, 10.0]] * 2 + [["n2", 2, 10.0, 10.0]] * 2  # 1 + 2 + 3 + 4


def lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def mark(folder: Path) -> str:
    """What the names of a cluster's links and namespaces have in them."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:6]


def crossed(cluster) -> int:
    """Bytes that n2 has sent and received over its link so far."""
    counters = Path(f"/sys/class/net/hpc{mark(cluster.folder)}n2/statistics")
    return sum(int((counters / name).read_text()) for name in ("rx_bytes", "tx_bytes"))


def test_the_nodes_are_idle(cluster):
    assert cluster.nodes() == {"n1": "idle", "n2": "idle"}
    again = cluster.tool("up", 2)
    assert again.returncode == 0
    assert "2 hosts are up" in again.stderr
    assert "n1 idle, n2 idle" in cluster.tool("status").stdout


def test_a_host_is_its_own(cluster):
    look = "import os, socket as s; print(s.gethostname(), os.listdir('/tmp'), *s.gethostbyaddr('n1')[::2])"
    shown = cluster.run("python", "-c", look, host="n2")
    # the reverse look-up is at hand, too: gloo waits 10 s for it otherwise
    assert re.fullmatch(r"n2 \[\] n1 \['[\d.]+\.1'\]\n", shown), shown
    assert cluster.tool("exec", "--host", "n9", "--", "true").returncode == 1
    assert cluster.tool("exec", "--host", "n1", "--", "sh", "-c", "exit 7").returncode == 7


def test_srun_over_the_link(cluster, shared):
    program = shared / "who.py"
    program.write_text(WHO)
    before = crossed(cluster)
    assert json.loads(cluster.run(*SRUN, "python", program)) == EXPECTED
    assert crossed(cluster) - before > 2 * 500_000 * 8


def test_mpirun_over_the_link(cluster, shared):
    program = shared / "who.py"
    program.write_text(WHO)
    before = crossed(cluster)
    assert json.loads(cluster.mpirun(4, "python", program)) == EXPECTED
    assert crossed(cluster) - before > 2 * 500_000 * 8


def test_mailboxes_over_the_link(cluster):
    """Nothing torn, lost or doubled, as within a host; 10,000 messages with HPCOPT_LONG_TESTS."""
    tests = ROOT / "tests/parallel"
    passed_on = ["OMPI_MCA_mpi_yield_when_idle=1", *({"HPCOPT_LONG_TESTS"} & os.environ.keys())]
    command = [tests / "one_voice", "python", "-m", "mpi4py", "-m", "pytest", "--with-mpi", "-q"]
    chosen = ["-p", "no:cacheprovider", tests / "test_mailbox.py", "-k", "between_hosts"]
    options = [word for variable in passed_on for word in ("-x", variable)]
    told = cluster.mpirun(4, *options, *command, *chosen, limit=600)
    assert "6 passed" in told


def test_same_curve_as_one_process(cluster, shared):
    (shared / "config.toml").write_text(CONFIG)
    command = ["hpcopt", "run", shared / "config.toml", "--out"]
    cluster.run(*command, shared / "one")
    cluster.run(*SRUN, *command, shared / "four")
    curves = [json.loads(cluster.run("python", "-c", CURVE, shared / name)) for name in ("one", "four")]
    assert curves[0][0] == curves[1][0] == list(range(0, 31, 3))
    assert curves[1][1] == pytest.approx(curves[0][1], rel=1e-9)
    assert curves[0][1][-1] < curves[0][1][0]


def test_a_directory_that_hosts_do_not_share(cluster, shared):
    """/tmp is each host's own: that is told before the first round, not by a checkpoint that hangs."""
    (shared / "private.toml").write_text(CONFIG)
    ended = cluster.tool("mpirun", "-n", 4, "hpcopt", "run", shared / "private.toml", "--out", "/tmp/mine")
    assert ended.returncode == 2, ended
    assert ended.stderr.count("/tmp/mine: n2 does not see what rank 0 has written there; ") == 1
    assert "(ranks 2, 3 of 4)" in ended.stderr


def test_a_batch_job(cluster, shared):
    job = cluster.sbatch(
        f"--output={shared}/out", "--wrap", "srun hostname; exit 3", "--nodes=2", "--ntasks-per-node=1"
    )
    assert cluster.wait(job, "FAILED", "COMPLETED")["ExitCode"] == "3:0"
    assert sorted((shared / "out").read_text().split()) == ["n1", "n2"]
    assert cluster.state("999999") == "UNKNOWN"


def test_rate(cluster):
    link = f"hpc{mark(cluster.folder)}n1"
    assert cluster.tool("rate", "100mbit").returncode == 0
    there = [
        *lines("tc", "qdisc", "show", "dev", link),
        *cluster.run("tc", "qdisc", "show", "dev", "eth0", host="n1").splitlines(),
    ]
    assert [line.partition(" burst")[0].split(" rate ")[1] for line in there] == ["100Mbit", "100Mbit"]
    shown = cluster.tool("status").stdout
    assert re.search(r"rate +100Mbit\nburst +256Kb\nqueue +1s\ncontrol +reno, slow start after idle 0", shown)
    assert cluster.tool("rate", "100mbit", "--burst", 16384).returncode == 0
    assert "burst 16Kb lat 1s" in "".join(lines("tc", "qdisc", "show", "dev", link))
    assert cluster.tool("rate", "100mbit", "--burst", "few").returncode == 2
    assert cluster.tool("rate", "none").returncode == 0
    assert "tbf" not in "".join(lines("tc", "qdisc", "show", "dev", link))
    assert cluster.tool("rate", "fast").returncode == 2


def test_a_killed_node_comes_back(cluster, shared):
    job = cluster.sbatch("--nodelist=n2", f"--output={shared}/out", "--wrap", "sleep 300")
    cluster.wait(job, "RUNNING")
    assert cluster.tool("kill-node", "n2").returncode == 0
    assert len(lines("ip", "netns", "pids", f"hpc-{mark(cluster.folder)}-n2")) == 1  # its namespaces' holder
    assert cluster.tool("revive", "n2").returncode == 0
    cluster.rest()


def test_down_leaves_nothing(another):
    name = mark(another.folder)

    def traces() -> dict[str, set[str]]:
        processes = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            except OSError:
                continue
            if folder.name != str(os.getpid()) and str(another.folder).encode() in text:
                processes.add(folder.name)
        mounts = set(Path("/proc/self/mounts").read_text().splitlines())
        return {
            "namespaces": {line for line in lines("ip", "netns", "list") if name in line},
            "links": {line for line in lines("ip", "-o", "link", "show") if name in line},
            "routes": {line for line in lines("ip", "route", "show") if name in line},
            "mounts": {line for line in mounts if name in line or str(another.folder) in line},
            "processes": processes,
            "folder": set(map(str, another.folder.parent.glob(another.folder.name))),
        }

    nothing = traces()
    assert not any(nothing.values())
    hosts = Path("/etc/hosts").read_bytes()

    assert another.tool("up", 1).returncode == 0
    assert all(traces().values())
    assert another.tool("down").returncode == 0
    assert traces() == nothing

    # and after a crash: no slurmctld, no munged, one host lost, the notes gone
    assert another.tool("up", 2, "--rate", "1gbit").returncode == 0
    for process in traces()["processes"]:
        what = Path(f"/proc/{process}/cmdline").read_bytes()
        if what.startswith((b"slurmctld", b"munged", b"hpcopt-cluster-n1")):
            os.kill(int(process), signal.SIGKILL)
    (another.folder / "n").unlink()
    assert another.tool("status").returncode == 1
    assert another.tool("down").returncode == 0
    assert traces() == nothing
    assert Path("/etc/hosts").read_bytes() == hosts


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["up", "0"], "from 1 to 32"),
        (["up", "2; reboot"], "from 1 to 32"),
        (["up", "2", "--rate", "1 gbit"], "like 1gbit"),
        (["up", "2", "--partition", "x\nNodeName=y"], "slurm.conf"),
        (["exec"], "tools/cluster up"),
        (["frob"], "tools/cluster up"),
        (["kill-node", "n7"], "n1 to n2"),
    ],
)
def test_wrong_usage(cluster, arguments, complaint):
    ended = cluster.tool(*arguments)
    assert ended.returncode == 2
    assert complaint in ended.stderr


def test_without_root(cluster):
    if os.geteuid() != 0:
        pytest.skip("is without root anyway")
    tools = ROOT / "tools"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # nobody may not read root's home, where the checkout may be
        shutil.copy(tools / "cluster", folder)
        shutil.copytree(tools / "cluster.d", Path(folder) / "cluster.d")
        ended = _as_nobody(Path(folder) / "cluster")
    assert ended.returncode == 2
    assert "root" in ended.stderr


def _as_nobody(tool):
    return subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "bash", tool, "up", "2"],
        capture_output=True,
        text=True,
        timeout=30,
    )
