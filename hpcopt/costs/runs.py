"""What was measured in runs: seconds, bytes and uses of ports in a round, and how the loss fell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.costs.travel import Layout, Rows, Work, everybody, gossip
from hpcopt.errors import UserError
from hpcopt.ground.placement import Placement
from hpcopt.storage.records import Records

Floats = NDArray[np.float64]
MAIL, BESIDE = "mailbox", "beside"
"""ports whose vectors travel while everybody computes; of the second, which ranks without workers serve,
seconds and bytes are taken as they were measured"""
ITEMSIZE = {"float32": 4, "float64": 8}
ONES_OWN = (
    *("out", "workers", "rounds", "max_seconds", "target_loss", "device", "curvature_ranks", "metrics"),
    *("evaluate_every", "checkpoint_every", "keep_checkpoints", "flush_seconds", "stall_seconds"),
)
"""keys of [run] in which runs of one method may differ"""


@dataclass(frozen=True)
class Use:
    """Of a port, or of a verb of it, in a round.

    Attributes:
        name: as in run.h5.
        calls: uses.
        payload, sent: bytes of all ranks that were handed over and that were sent.
        seconds: of the rank that waited least, for each block of rounds [s].
    """

    name: str
    calls: float
    payload: float
    sent: float
    seconds: Floats

    @property
    def kind(self) -> str:
        """As `hpcopt.costs.travel.Work.kind` says."""
        port, _, verb = self.name.partition(".")
        return verb or port.split("_")[0]


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        path: where it is.
        on: on what it ran.
        method, dim: its name, and d.
        config: its tables.
        chosen: what it measured and chose when it began.
        crowded: whether ranks shared cores.
        rounds: between two records, for each block.
        seconds, compute: per round, of the slowest rank, for each block [s].
        uses: of ports, those that were used.
        memory: the most that a rank had [B].
        curve: round and loss of each record.
    """

    path: Path
    on: Layout
    method: str
    dim: int
    config: dict[str, dict[str, Any]]
    chosen: dict[str, Any]
    crowded: bool
    rounds: Floats
    seconds: Floats
    compute: Floats
    uses: tuple[Use, ...]
    memory: float
    curve: tuple[Floats, Floats]

    @cached_property
    def kind(self) -> str:
        """The same for runs that differ only in where and for how long they ran."""
        run = {k: v for k, v in self.config["run"].items() if k not in ONES_OWN}
        method = {k: v for k, v in self.config["method"].items() if not k.endswith("_horizon")}  # run.rounds
        return json.dumps([run, method, self.problem], sort_keys=True, default=str)

    @cached_property
    def problem(self) -> str:
        """The same for runs of one problem."""
        return json.dumps({k: v for k, v in self.config["problem"].items() if k != "workers"}, sort_keys=True)

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the model."""
        return ITEMSIZE[self.config["run"].get("dtype") or "float64"]

    @property
    def overlaps(self) -> bool:
        """Whether something travels while gradients are computed."""
        run, method = self.config["run"], self.config["method"]
        return bool(run.get("overlap") or method.get("overlap"))

    @property
    def dense(self) -> bool:
        """Whether nothing but sums of whole vectors carries the method."""
        used = {use.kind for use in self.uses} - {"scalars", "slices"}
        whole = self.dim * self.itemsize * self.on.hosting
        return used == {"sum"} and all(u.payload >= whole * u.calls for u in self.uses if u.kind == "sum")

    def work(self, use: Use) -> Work:
        """What one use of a port has to do on any ranks."""
        on, method = self.on, self.config["method"]
        of_workers = dict.fromkeys(("sparse", "neighbours", MAIL), on.workers) | {"gather": 1}
        nbytes = use.payload / self.calls(use) / of_workers.get(use.kind, on.hosting)
        rows: Rows | None = everybody if use.kind == MAIL else None
        if use.kind == "neighbours":
            options = {"probability": method.get("probability", 0.25), "seed": self.config["run"]["seed"]}
            rows = gossip(method["topology"], method["mixing"], **options)
        ring = self.chosen.get("reduction") == "ring"
        ordered = self.chosen.get("reduction") == "ordered"
        selects = method.get("select") == "global"
        exchange = method.get("exchange", "auto")
        return Work(use.kind, nbytes, ring, self.itemsize, ordered, exchange, self.dim, selects, rows)

    def calls(self, use: Use) -> float:
        """Uses per round; of mail those of one worker, for the counter is of the rank with the most."""
        return use.calls / self.on.fullest if use.kind == MAIL else use.calls

    def reached(self, target: float) -> int | None:
        """The first recorded round whose loss is not above a target; None: it was not reached."""
        rounds, losses = self.curve
        below = np.flatnonzero(losses <= target)
        return int(rounds[below[0]]) if len(below) else None


def found(paths: Sequence[Path]) -> tuple[list[Measured], list[str]]:
    """The runs in some paths, and what could not be used: run directories, run.h5, sweeps, scaling studies.

    Raises:
        UserError: there is none; or a path is a config.
    """
    runs, troubles = [], []
    for path in paths:
        if path.suffix == ".toml":
            raise UserError(
                f"{path}: a config cannot say how many parameters there are and how long a gradient takes; "
                "run it for some rounds on a few ranks, and give the run's directory"
            )
        for file in _files(path):
            try:
                runs.append(measured(file))
            except UserError as error:
                troubles.append(str(error))
    if not runs:
        raise UserError("\n".join(troubles) or f"{', '.join(map(str, paths))}: no run there")
    return runs, troubles


def _files(path: Path) -> list[Path]:
    if path.is_dir() and not (path / "run.h5").is_file():
        inside = sorted([*path.glob("runs/*/run.h5"), *path.glob("cases/*/run.h5")])
        if inside:
            return inside
    return [path / "run.h5" if path.is_dir() else path]


def measured(file: Path) -> Measured:
    """Reads one run.

    Raises:
        UserError: the file is no run's, or holds too little to say anything.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; name a run's directory or its run.h5")
    with Records(file) as records:
        needed = ("ports/calls", "phases/seconds_min", "metrics/seconds")
        if any(name not in records.columns for name in needed):
            raise UserError(f"{file}: written by an older hpcopt: it says too little about its ports")
        return _of(file, records)


def _of(file: Path, records: Records) -> Measured:
    attributes = records.attributes
    config, ports = json.loads(attributes["config"]), records.labels["port"]
    phases: list[str] = records.labels["phase"]
    index: Any = records["metrics/round"]
    last = json.loads(attributes["jobs"])[-1]["round"]  # earlier jobs may have had other ranks
    first = int(np.searchsorted(index, last)) + 1  # the rounds up to the next record warm up
    if len(index) < first + 2:
        raise UserError(
            f"{file}: its last job has {max(0, len(index) - first + 1)} records; three are needed, for the "
            "rounds up to the second one warm up: set run.evaluate_every"
        )
    rounds = np.diff(index.astype(float))[first:]

    def per_round(column: str, at: int | None = None) -> Floats:
        values: Any = records[column] if at is None else records.columns[column][:, at]
        found: Floats = np.diff(values.astype(float))[first:] / rounds
        return found

    uses = []
    for k, name in enumerate(ports):
        calls, payload, sent = (
            float(np.average(per_round(f"ports/{c}", k), weights=rounds))
            for c in ("calls", "payload", "bytes")
        )
        if calls > 0:
            uses.append(
                Use(str(name), calls, payload, sent, per_round("phases/seconds_min", phases.index(name)))
            )
    hosts = json.loads(attributes["ranks_per_host"])
    ranks, workers = int(attributes["ranks"]), int(attributes["workers"])
    beside = int(config["run"].get("curvature_ranks", 0)) if ranks > 1 else 0
    work = _work(records, json.loads(attributes.get("workers_per_rank", "[]")))
    memory: Any = records["metrics/peak_memory"]
    losses: Any = records["metrics/loss"]
    return Measured(
        file,
        Layout(ranks, len(hosts), workers, beside, work),
        str(attributes["method"]),
        int(attributes["dim"]),
        config,
        json.loads(attributes["chosen"]),
        ranks > int(attributes["cores"]),
        rounds,
        per_round("metrics/seconds"),
        per_round("phases/seconds", phases.index("compute")),
        tuple(uses),
        float(np.nanmax(memory)),
        (index.astype(float), losses.astype(float)),
    )


def _work(records: Records, counts: list[int]) -> tuple[int, ...]:
    """What workers do in a round, (N,); nothing if the ranks had other blocks than that would give them."""
    if "rows/round" not in records.columns or not counts:
        return ()
    column: Any = records["rows/round"]
    work = tuple(int(rows) for rows in column)
    return work if list(Placement.balanced(work, len(counts)).counts) == counts else ()
