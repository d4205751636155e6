"""What happens to jobs: each scenario on a cluster of its own, from two threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from customer import SLOW, Customer

SECONDS = 600  # for a disturbed job to end; only against hanging
# Slurm looks at the time limits every 30 s and may signal 30 s early: of two minutes, after 50 to 80 s
SITE = "signal_seconds = 40\n"


@dataclass(frozen=True)
class Story:
    """How a disturbed job ended.

    Attributes:
        customer: whose it was.
        job: its number.
        run: its directory.
        ranks: on how many it was.
        record: what Slurm says of it.
    """

    customer: Customer
    job: str
    run: Path
    ranks: int
    record: dict[str, str]


def time_limit(customer: Customer) -> Story:
    """Needs longer than it may run at once."""
    (customer.home / "site.toml").write_text(SITE)
    return _end(customer, *_submit(customer, rounds=800, time="2"))


def requeue(customer: Customer) -> Story:
    """`scontrol requeue`, which kills at once."""
    job, run = _submit(customer, rounds=150, tasks=1)
    customer.until_round(run, 30, job)
    customer.succeed("scontrol", "requeue", job)
    return _end(customer, job, run, ranks=2)


def preemption(customer: Customer) -> Story:
    """Somebody urgent needs the nodes."""
    job, run = _submit(customer, rounds=150, tasks=1)
    customer.until_round(run, 30, job)
    urgent = customer.succeed(
        *("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--job-name=urgent"),
        *(f"--output={customer.home}/urgent", "--wrap", "srun --ntasks-per-node=1 hostname"),
    ).strip()
    customer.complete(urgent, limit=60)
    if customer.cluster.state(job) == "COMPLETED":
        customer.fail("was not preempted in time", job)
    return _end(customer, job, run, ranks=2)


def node_loss(customer: Customer) -> Story:
    """A node without the batch script dies, and comes back after Slurm has noticed."""
    return _lose(customer, "n2")


def batch_host_loss(customer: Customer) -> Story:
    """The node with the batch script dies."""
    return _lose(customer, "n1")


SCENARIOS: dict[str, Callable[[Customer], Story]] = {
    scenario.__name__: scenario for scenario in (time_limit, requeue, preemption, node_loss, batch_host_loss)
}


def _lose(customer: Customer, node: str) -> Story:
    job, run = _submit(customer, rounds=150)
    customer.until_round(run, 30, job)
    _tool(customer, "kill-node", node)

    def down() -> bool:
        shown = customer.call("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T").stdout
        return "down" in shown

    customer.until(down, f"{node} is down", 60, job)
    _tool(customer, "revive", node)
    return _end(customer, job, run)


def _submit(customer: Customer, rounds: int, time: str = "10", tasks: int = 2) -> tuple[str, Path]:
    config = customer.write("run", SLOW, run={"rounds": rounds})
    return customer.submit(config, time=time, tasks=tasks), customer.home / "run"


def _end(customer: Customer, job: str, run: Path, ranks: int = 4) -> Story:
    return Story(customer, job, run, ranks, customer.complete(job, limit=SECONDS))


def _tool(customer: Customer, *arguments: Any) -> None:
    done = customer.cluster.tool(*arguments, limit=240)
    if done.returncode != 0:
        pytest.fail(f"tools/cluster {' '.join(arguments)}: {done.stderr}\n{customer.cluster.tails()}")
