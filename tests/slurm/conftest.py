"""Slurm: a cluster of two hosts in a box (tools/cluster), up once for all the tests in this folder.

The test process never imports MPI. What tasks on several hosts share lies in the fixture ``shared``, for
/tmp is each host's own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from customer import Customer
from scenarios import SCENARIOS, Story

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = Path("/var/lib")
_PREFIX = "hpcopt-test-"  # and the process of the test session
_IN_ENVIRONMENT = ["bash", "-c", f'source "{ROOT}/jobs/env.sh" && exec "$@"', "run"]
_FOREIGN = ("SLURM", "SBATCH", "SRUN", "OMPI_", "PMIX_", "PMI_", "PRTE_", "HPCOPT_CLUSTER")
_INSTALLING = 900  # seconds; the first `up` on a machine installs Slurm


class Cluster:
    """tools/cluster with a folder of its own, and what tests ask Slurm for.

    Attributes:
        folder: the cluster's HPCOPT_CLUSTER_DIR.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tool(self, *arguments: object, limit: float = 90) -> subprocess.CompletedProcess[str]:
        """How ``tools/cluster ARGUMENTS…`` ends; an error, with nothing left of it, after ``limit`` s."""
        return self.call(ROOT / "tools/cluster", *arguments, limit=limit)

    def call(
        self, *arguments: object, limit: float = 60, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """How a command on the head ends, at once and without tools/cluster; otherwise as `tool`."""
        inherited = {key: old for key, old in os.environ.items() if not key.startswith(_FOREIGN)}
        inherited |= {"SLURM_CONF": str(self.folder / "etc/slurm.conf")} | (env or {})
        command = [*_IN_ENVIRONMENT, *map(str, arguments)]
        # files, not pipes: a process that is left over would hold a pipe open
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=inherited | {"HPCOPT_CLUSTER_DIR": str(self.folder), "HPCOPT_PROGRESS": "lines"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                _end(process)
                code = None
            texts = [_text(file) for file in (out, err)]
        if code is None:
            pytest.fail(f"{' '.join(command[4:])} did not end within {limit} s\n{texts[0]}\n{texts[1]}")
        return subprocess.CompletedProcess(command[4:], code, *texts)

    def run(self, *command: object, host: str | None = None, limit: float = 90) -> str:
        """What ``command`` prints, on the head or on a host; it has to succeed."""
        where = ["--host", host] if host else []
        return _succeed(self.tool("exec", *where, "--", *command, limit=limit))

    def mpirun(self, ranks: int, *command: object, limit: float = 90) -> str:
        """What ``command`` prints on ``ranks`` ranks across the hosts, without Slurm."""
        return _succeed(self.tool("mpirun", "-n", ranks, *command, limit=limit))

    def sbatch(self, *arguments: object) -> str:
        """Submits a job and returns its id."""
        return self.run("sbatch", "--parsable", *arguments).strip().partition(";")[0]

    def record(self, job: str) -> dict[str, str]:
        """``scontrol show job``; finished jobs stay for five minutes, unknown ones are empty."""
        shown = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", shown.stdout)) if shown.returncode == 0 else {}

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, …; UNKNOWN if Slurm does not know the job."""
        return self.record(job).get("JobState", "UNKNOWN")

    def wait(self, job: str, *states: str, limit: float = 60) -> dict[str, str]:
        """The job's record once it is in one of ``states``; an error after ``limit`` seconds."""
        end = time.monotonic() + limit
        while (record := self.record(job)).get("JobState") not in states:
            if time.monotonic() > end:
                what = f"job {job} is not {' or '.join(states)} after {limit} s: {record}"
                pytest.fail(f"{what}\n{self.tails(record.get('StdOut'))}")
            time.sleep(0.3)
        return record

    def tails(self, *files: object) -> str:
        """The ends of these files and of Slurm's own logs, for messages."""
        logs = [*(Path(str(file)) for file in files if file), *sorted((self.folder / "log").glob("slurm*"))]
        texts = ((log, log.read_text(errors="replace")) for log in logs if log.is_file())
        return "\n".join(f"--- {log}\n{text[-3000:]}" for log, text in texts if text)

    def nodes(self) -> dict[str, str]:
        """Node name -> state, as sinfo has it (idle, allocated, down*, …)."""
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines)

    def rest(self, limit: float = 60) -> None:
        """Cancels all jobs, brings lost nodes back and waits until all are idle."""
        self.run("scancel", "--user=root")
        for name, state in self.nodes().items():
            if state not in ("idle", "allocated", "mixed", "completing"):
                _succeed(self.tool("revive", name))
        end = time.monotonic() + limit
        while set(self.nodes().values()) != {"idle"}:
            if time.monotonic() > end:
                pytest.fail(f"the nodes are not idle after {limit} s: {self.nodes()}")
            time.sleep(0.3)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two hosts, n1 and n2, for the whole session; skipped only where hosts cannot be made."""
    for left in CLUSTERS.glob(f"{_PREFIX}*"):  # of test sessions that were killed
        if not Path("/proc", left.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            Cluster(left).tool("down")
    cluster = Cluster(CLUSTERS / f"{_PREFIX}{os.getpid()}")
    try:
        begun = cluster.tool("up", 2, limit=_INSTALLING)
        if begun.returncode == 2:
            pytest.skip(f"no cluster in a box here: {begun.stderr.strip()}")
        _succeed(begun)
        yield cluster
    finally:
        if os.geteuid() == 0:
            _succeed(cluster.tool("down"))


@pytest.fixture(scope="session")
def boxes(cluster: Cluster) -> Iterator[Callable[[str], Cluster]]:
    """Makes more clusters of two hosts, each with a name, which are up until the end of the session."""
    made: list[Cluster] = []

    def make(name: str) -> Cluster:
        box = Cluster(cluster.folder.with_name(f"{cluster.folder.name}-{name}"))
        made.append(box)
        _succeed(box.tool("up", 2, limit=240))
        return box

    try:
        yield make
    finally:
        for box in made:
            box.tool("down")


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A folder that all hosts see."""
    (ROOT / "runs").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="test-jobs-", dir=ROOT / "runs"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def scenarios(
    request: pytest.FixtureRequest, boxes: Callable[[str], Cluster], home: Path
) -> Iterator[dict[str, Future[Story]]]:
    """Scenario -> its future; those that a test of this session asks for run from the beginning."""
    names = {item.name for item in request.session.items}
    asked = [name for name in SCENARIOS if f"test_a_disturbed_job_finishes[{name}]" in names]

    def story(name: str) -> Story:
        return SCENARIOS[name](Customer(boxes(name.replace("_", "-")), home / name))

    # the first mostly waits, the others follow one another: more ranks at once would only start more slowly
    with ThreadPoolExecutor(2) as threads:
        yield {name: threads.submit(story, name) for name in asked}


@pytest.fixture
def another(cluster: Cluster) -> Iterator[Cluster]:
    """A second cluster, not up yet, for tests that break it."""
    other = Cluster(cluster.folder.with_name(f"{cluster.folder.name}-other"))
    try:
        yield other
    finally:
        _succeed(other.tool("down"))


@pytest.fixture
def shared() -> Iterator[Path]:
    """An empty folder that all hosts see."""
    (ROOT / "runs").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="test-slurm-", dir=ROOT / "runs"))
    yield folder
    shutil.rmtree(folder)


def _succeed(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode != 0:
        printed = f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        pytest.fail(f"{' '.join(done.args)}: exit code {done.returncode}\n{printed}")
    return done.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a command that takes too long: politely first, so that srun and mpirun end their ranks."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            process.wait(10)
            return
        except subprocess.TimeoutExpired:
            continue


def _text(file: object) -> str:
    return os.pread(file.fileno(), 1 << 24, 0).decode(errors="replace")  # type: ignore[attr-defined]
