"""Machine files: how long messages take within a host and between hosts, measured or published.

T = hops · latency + bytes / bandwidth + overheads, the model of Hockney (Parallel Computing 20, 1994) with
what was measured beyond it. Overheads are not in the file: measured points are, and they follow from them.
"""

from __future__ import annotations

import hashlib
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hpcopt.costs.travel import Layout, Traffic, Travel, Work, gossip, travel
from hpcopt.errors import UserError

SHIPPED = Path(__file__).parent / "machines"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class About(_Table):
    """The table [machine]."""

    name: str
    """in a few words"""
    source: str
    """who measured it and where it is written, or the command that did"""
    date: str
    """when it was measured or published"""
    ranks_per_host: Annotated[int, Field(ge=1)] = 1
    """of runs that are predicted, where nothing else is said"""


class Point(_Table):
    """A measured use of a port, one worker a rank."""

    verb: Literal["sum", "scatter", "gather", "sparse", "neighbours"]
    """sums, both halves of one, sums of sparse vectors, averages with both neighbours in a ring"""
    ranks: Annotated[int, Field(ge=2)]
    """all of them within a host, or one per host"""
    bytes: Positive
    """sum, scatter, gather: of the whole vector; sparse: of a worker's entries; neighbours: of a row"""
    seconds: Positive
    """of the slowest rank, the median"""
    spread: Annotated[float, Field(ge=0)] = 0.0
    """half the interquartile range over the median"""
    ring: bool = False
    """whether the sum went round in a ring"""
    exchange: str = "allgather"
    """of a sparse sum"""
    dim: int = 0
    """of a sparse sum: d"""
    itemsize: int = 4
    """bytes of a number"""

    @property
    def work(self) -> Work:
        """What was done."""
        rows = gossip("ring", "metropolis") if self.verb == "neighbours" else None
        return Work(
            self.verb,
            self.bytes,
            ring=self.ring,
            itemsize=self.itemsize,
            exchange=self.exchange,
            dim=self.dim,
            rows=rows,
        )


class Link(_Table):
    """The tables [within] and [between]."""

    latency: Positive
    """of a small message, one way [s]"""
    bandwidth: Positive
    """bytes per second of a rank (within) or of a host (between), in each direction"""
    burst: Annotated[float, Field(ge=0)] = 0.0
    """bytes that pass a limited link at once after a pause"""
    points: tuple[Point, ...] = ()
    """measured uses of ports"""


class Machine(_Table):
    """A machine file.

    Attributes:
        machine: what it is of.
        within: within a host; none: as between hosts.
        between: between hosts; none: nobody knows.
        conditions: of a measurement: congestion control, queue, cores, commit, …
    """

    machine: About
    within: Link | None = None
    between: Link | None = None
    conditions: dict[str, str | int | float] = {}

    @model_validator(mode="after")
    def _some_link(self) -> Machine:
        if self.within is None and self.between is None:
            raise ValueError("needs a table [between], or [within]")
        return self

    def link(self, place: str) -> Link:
        """What connects ranks there; that of the other place where nobody knows."""
        found = (self.within or self.between) if place == "within" else (self.between or self.within)
        assert found is not None
        return found

    @cached_property
    def curves(self) -> dict[tuple[str, str], dict[int, tuple[list[float], list[float]]]]:
        """(place, verb) -> ranks -> bytes of a message, ascending, and seconds beyond the model of each."""
        found: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
        for place, link in (("within", self.within), ("between", self.between)):
            for point in link.points if link else ():
                assert link is not None
                hosts = point.ranks if place == "between" else 1
                traffic: Traffic = getattr(travel(point.work, Layout(point.ranks, hosts, point.ranks)), place)
                beyond = point.seconds - traffic.hops * link.latency - traffic.nbytes / link.bandwidth
                curve = found.setdefault((place, point.work.verb), {}).setdefault(point.ranks, [])
                curve.append((traffic.piece, beyond / max(traffic.pieces, 1)))
        return {
            key: {ranks: ([a for a, _ in sorted(c)], [b for _, b in sorted(c)]) for ranks, c in of.items()}
            for key, of in found.items()
        }

    def overhead(self, place: str, verb: str, ranks: int, piece: float) -> float | None:
        """Seconds of a message of so many bytes beyond the model; None where nothing was measured.

        Between measured sizes and numbers of ranks they are on straight lines. Longer messages have the
        longest one's in proportion, shorter ones the shortest one's; more ranks what the most have.
        """
        curves = self.curves.get((place, verb))
        if not curves:
            return None
        counts = sorted(curves)
        each = []
        for count in counts:
            sizes, beyond = curves[count]
            value = float(np.interp(piece, sizes, beyond))
            each.append(value * piece / sizes[-1] if piece > sizes[-1] else value)
        return float(np.interp(ranks, counts, each))

    def outside(self, place: str, verb: str, ranks: int, piece: float) -> str:
        """In what way it is beyond what was measured, in words; empty: it is not."""
        curves = self.curves.get((place, verb))
        if not curves:
            return ""
        most, largest = max(curves), max(sizes[-1] for sizes, _ in curves.values())
        if ranks > most:
            return f"{verb}: measured on up to {most} {'hosts' if place == 'between' else 'ranks'}"
        return f"{verb}: measured with messages up to {largest:.3g} bytes" if piece > 1.01 * largest else ""

    @property
    def spread(self) -> float:
        """Half of the measured points' spread is below this; 0 where nothing was measured."""
        points = [p.spread for link in (self.within, self.between) if link for p in link.points]
        return float(np.median(points)) if points else 0.0


def load_machine(name: str | Path) -> tuple[Machine, str]:
    """Reads a machine file, one that is shipped by its name alone.

    Returns:
        The machine, and the SHA-256 digest of the file.

    Raises:
        UserError: there is no such file, or what is wrong in it: file, key, value.
    """
    path = Path(name)
    if not path.is_file() and (SHIPPED / f"{name}.toml").is_file():
        path = SHIPPED / f"{name}.toml"
    try:
        raw = path.read_bytes()
        tables = tomllib.loads(raw.decode())
    except OSError:
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
        raise UserError(f"--machine {name}: no such file; shipped are {shipped}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    try:
        return Machine.model_validate(tables), hashlib.sha256(raw).hexdigest()
    except ValidationError as error:
        lines = [f"{path}: {_explained(detail)}" for detail in error.errors()]
        raise UserError("\n".join(lines)) from None


def _explained(detail: Any) -> str:
    key = ".".join(map(str, detail["loc"]))
    if not key:
        return str(detail["msg"].removeprefix("Value error, "))
    if detail["type"] == "missing":
        return f"{key}: is missing"
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    message = detail["msg"]
    return f"{key} = {detail['input']!r}: {message[0].lower()}{message[1:]}"


def traffic_seconds(
    machine: Machine, work: Work, on: Layout, of: Travel
) -> tuple[float, float, float, list[str]]:
    """Of one use: seconds of messages and of overheads, bytes that leave a host, and what is extrapolated."""
    seconds, beyond, extrapolated = 0.0, 0.0, []
    for place, traffic, count in (("within", of.within, on.within), ("between", of.between, on.hosts)):
        link = machine.link(place)
        if not traffic.pieces:
            continue
        seconds += traffic.hops * link.latency
        if place == "within":
            seconds += traffic.nbytes / link.bandwidth
        beyond += traffic.pieces * (machine.overhead(place, work.verb, count, traffic.piece) or 0.0)
        extrapolated += [text] if (text := machine.outside(place, work.verb, count, traffic.piece)) else []
    return seconds, beyond, of.between.nbytes, extrapolated
