"""What a user does on a login node: hpcopt submit, hpcopt jobs, a look into a run's directory."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

QUICK = {
    "run": {"workers": 4, "rounds": 30, "evaluate_every": 5, "checkpoint_every": 10, "device": "cpu"},
    "method": {"lr": 0.05},
    "problem": {"kind": "linear_regression", "dim": 20, "rows_per_worker": 30},
}
# one that has not converged after hundreds of rounds, and depends on more state than the parameters
SLOW = QUICK | {
    "method": {"lr": 0.0003, "momentum": 0.9},
    "problem": {"kind": "tests.slurm.slow:factory", "pause": 0.1},
}
LONG = 600.0
"""seconds for some jobs of several ranks; only against hanging"""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
LOOK = """
import json, sys
import hpcopt
for run in sys.argv[1:]:
    tree = hpcopt.load(run)
    metrics, about = tree["metrics"], tree.attrs
    print(json.dumps({
        "rounds": metrics["round"].values.tolist(),
        "losses": metrics["loss"].values.tolist(),
        "jobs": json.loads(about["jobs"]),
        "config": json.loads(about["config"]),
        "stopped_by": about["stopped_by"],
        "ranks": int(about["ranks"]),
        "hosts": json.loads(about["hosts"]),
    }))
"""


class Customer:
    """One user of one cluster, with a home folder of its own.

    Attributes:
        cluster: where the jobs run.
        home: configs, runs, and what hpcopt notes about jobs; all hosts see it.
    """

    def __init__(self, cluster: Any, home: Path) -> None:
        self.cluster, self.home = cluster, home
        home.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, base: Mapping[str, Mapping[str, Any]], **changes: Mapping[str, Any]) -> Path:
        """A config with some tables' keys changed."""
        lines = []
        for table in ("run", "method", "problem"):
            values = {**base[table], **changes.get(table, {})}
            lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        path = self.home / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def call(
        self, *command: object, limit: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """How a command ends."""
        own = {name: str(self.home / name) for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME")}
        own["OMPI_MCA_mpi_yield_when_idle"] = "1"  # many more ranks than cores, and srun does not tell them
        return self.cluster.call(*command, limit=limit, env=own | dict(env or {}))

    def succeed(self, *command: object, limit: float = 60, env: Mapping[str, str] | None = None) -> str:
        """What a command prints; it has to succeed."""
        done = self.call(*command, limit=limit, env=env)
        if done.returncode != 0:
            texts = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\n{self.cluster.tails()}"
            pytest.fail(f"{' '.join(done.args)}: exit code {done.returncode}\n{texts}")
        return done.stdout

    def submit(
        self,
        config: Path,
        *options: object,
        nodes: int = 2,
        tasks: int = 2,
        time: str = "10",
        out: str | None = None,
    ) -> str:
        """Submits a config, with its name as the run's directory; returns the job's number."""
        size = ("--nodes", nodes, "--ntasks-per-node", tasks, "--time", time)
        printed = self.succeed(
            "hpcopt", "submit", config, *size, "--out", self.home / (out or config.stem), *options
        )
        assert printed.strip().isdigit(), printed
        return printed.strip()

    def table(self, *options: str) -> dict[str, str]:
        """``hpcopt jobs``: job -> its line."""
        lines = self.succeed("hpcopt", "jobs", *options).splitlines()
        return {line.split()[0]: line for line in lines}

    def until(self, what: Callable[[], Any], name: str, limit: float, job: str) -> Any:
        """Asks until the answer is yes; an error, with all that is known of the job, after ``limit`` s."""
        end = time.monotonic() + limit
        while not (answer := what()):
            if time.monotonic() > end:
                self.fail(f"not after {limit} s: {name}", job)
            time.sleep(0.3)
        return answer

    def until_round(self, run: Path, round: int, job: str, limit: float = LONG) -> None:
        """Waits for a checkpoint of this round or a later one."""
        checkpoints = run / "checkpoints"

        def there() -> bool:
            return any(int(file.stem.partition("-")[2]) >= round for file in checkpoints.glob("round-*.h5"))

        self.until(there, f"a checkpoint of round {round} in {run}", limit, job)

    def ended(self, job: str, limit: float = LONG) -> dict[str, str]:
        """The record of a job that has ended for good: while it is requeued it may look so for a moment."""
        end, seen = time.monotonic() + limit, 0
        while seen < 5:
            record = self.cluster.record(job)
            seen = seen + 1 if record.get("JobState") in ENDED else 0
            if record.get("JobState") == "COMPLETED":
                break
            if time.monotonic() > end:
                self.fail(f"did not end within {limit} s", job)
            time.sleep(0.3)
        return record

    def complete(self, job: str, limit: float = LONG) -> dict[str, str]:
        """The record of a job that has ended well."""
        record = self.ended(job, limit)
        if record["JobState"] != "COMPLETED":
            self.fail("did not end well", job)
        return record

    def fail(self, what: str, job: str) -> None:
        """Ends the test with all that is known of the job."""
        record = self.cluster.record(job)
        output = record.get("StdOut")
        files = (output, Path(output).parent / "status") if output else ()
        pytest.fail(f"job {job}: {what}\n{record}\n{self.cluster.tails(*files)}")

    def look(self, *runs: Path) -> list[dict[str, Any]]:
        """What is in these runs' run.h5, read by another process."""
        return [json.loads(line) for line in self.succeed("python", "-c", LOOK, *runs).splitlines()]


def status(run: Path) -> list[dict[str, Any]]:
    """The lines that the job's script wrote."""
    return [json.loads(line) for line in (run / "status").read_text().splitlines()]


def states(run: Path) -> Sequence[str]:
    """What the job's script said of itself, in order."""
    return [line["state"] for line in status(run)]
