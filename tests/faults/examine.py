"""Looks into a run's directory: are run.h5 and every checkpoint whole, and which curve is in there?

`Examiner` does it in one process of its own, for the test process never imports MPI (h5py would).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from launch import _IN_ENVIRONMENT


@dataclass(frozen=True)
class Found:
    """What a run's directory holds.

    Attributes:
        rounds, losses: the records of run.h5; empty where there is none.
        eigenvalues: of the method's refreshes, a list each; empty where it has none.
        checkpoints: the rounds of the files with a checkpoint's final name.
        intact: those of them that pass verification.
        stopped_by: how the run ended; empty where it did not.
        faults: everything that must never be.
    """

    rounds: list[int]
    losses: list[float]
    eigenvalues: list[list[float]]
    checkpoints: list[int]
    intact: list[int]
    stopped_by: str
    faults: list[str]


class Examiner:
    """Starts the process that looks; a context."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [*_IN_ENVIRONMENT, "python", "-u", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Examiner:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self, directory: Path) -> Found:
        """What ``directory`` holds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{directory}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the examiner died on {directory} with {self._process.wait()}"
        return Found(**json.loads(line))


def examine(directory: Path) -> Found:
    """What a run's directory holds; in this process, so only where h5py may be imported."""
    rounds, losses, eigenvalues, stopped_by, faults = _records(directory / "run.h5")
    checkpoints, intact = [], []
    for path in sorted((directory / "checkpoints").glob("round-*.h5")):
        checkpoints.append(int(path.stem.removeprefix("round-")))
        if damage := _damage(path):
            faults.append(f"{path}: {damage}")
        else:
            intact.append(checkpoints[-1])
    return Found(rounds, losses, eigenvalues, checkpoints, intact, stopped_by, faults)


def _records(path: Path) -> tuple[list[int], list[float], list[list[float]], str, list[str]]:
    import hpcopt

    if not path.exists():
        return [], [], [], "", []
    try:
        tree = hpcopt.load(path)
    except Exception as error:  # whatever it is: run.h5 must always open
        return [], [], [], "", [f"{path}: does not open: {error}"]
    run = json.loads(tree.attrs["config"])["run"]
    rounds, losses = tree["metrics/round"].values.tolist(), tree["metrics/loss"].values.tolist()
    every, last = run["evaluate_every"], tree.attrs.get("last_round", -1)
    grid = [i * every for i in range(len(rounds))]
    off_grid = rounds != grid and [*grid[:-1], last] != rounds
    faults = [f"{path}: records at {rounds} are not a gapless prefix"] if off_grid else []
    if any(loss != loss for loss in losses) and tree.attrs["stopped_by"] != "not finite":
        faults.append(f"{path}: a record without a loss: {losses}")
    eigenvalues = tree["spectrum/eigenvalue"].values.tolist() if "spectrum" in tree else []
    return rounds, losses, eigenvalues, tree.attrs["stopped_by"], faults


def _damage(path: Path) -> str:
    from hpcopt.storage import format

    try:
        meta: dict[str, Any] = format.read_meta(path)
        format.check(path, format.extents(path, meta))
        return "" if f"{meta['round']:08d}" in path.name else f"is of round {meta['round']}"
    except format.Damaged as error:
        return str(error)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(vars(examine(Path(line.rstrip("\n"))))))
