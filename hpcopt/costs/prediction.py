"""How long a round takes on other numbers of ranks, with what it is made of, and which method is first.

A round computes for c, on the fullest rank, and then sends w bytes from every host over links of bandwidth B,
of which b pass at once after a pause; hops, overheads and work in memory take h:

    T = h + max(c + (w − b)⁺ / B,  w / B)

The interval is T / (1 + e) to T (1 + e) with e = 2 √(s² + r² + m²): s, how much blocks of rounds differed
(half the interquartile range over the median), r, by how much the runs' own fit misses them (root mean square
of relative errors), m, the spread of the machine file's points; e is at least 5 %, and beyond the measured
ranks 1 + log₂(P / most ranks) times as large. Where something travels while gradients are computed, the upper
end is without that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcopt.costs.fit import Compute, Network, Price, compute, fit
from hpcopt.costs.machine import Machine
from hpcopt.costs.runs import BESIDE, MAIL, Measured, Use
from hpcopt.costs.travel import Layout, Travel, Work, travel
from hpcopt.costs.volumes import EXCHANGES
from hpcopt.errors import UserError

LEAST = 0.05
"""of an interval, to either side"""


@dataclass(frozen=True)
class Prediction:
    """A round of one method on some ranks.

    Attributes:
        method: its label.
        on: ranks, hosts and workers.
        seconds, low, high: of a round [s].
        parts: what it is made of: "compute", a port, [s]; what overlaps is not in it.
        hidden: seconds of ports that pass while gradients are computed.
        sent: bytes that a rank with workers sends, on average.
        sent_idle: bytes of what ranks without workers do, per such rank, as measured; 0 where there is none.
        memory: of a rank with workers, at most [B].
        memory_idle: of a rank that hosts none; 0 where there is none.
        extrapolated: in what way it is beyond what was measured; empty: it is not.
        grown: N had to grow with P, at the same rows per worker.
        target: seconds to the target loss; NaN where that is not known.
        rounds: until there.
        dense: nothing but sums of whole vectors is communicated.
    """

    method: str
    on: Layout
    seconds: float
    low: float
    high: float
    parts: dict[str, float]
    hidden: float
    sent: float
    sent_idle: float
    memory: float
    memory_idle: float
    extrapolated: tuple[str, ...]
    grown: bool
    target: float = math.nan
    rounds: int = 0
    dense: bool = False


class Model:
    """What runs of one method say about rounds on other ranks.

    Args:
        runs: of one method, on one problem, on any ranks.
        machine: where the rounds are to be; None: on the machine of the runs.
        label: of the method.
        ranks_per_host: of the predicted rounds; None: the machine's, or those of the runs.

    Raises:
        UserError: a single rank was measured, and there is no machine.
    """

    def __init__(
        self,
        runs: Sequence[Measured],
        machine: Machine | None = None,
        label: str = "",
        ranks_per_host: int | None = None,
    ) -> None:
        self.runs = sorted(runs, key=lambda run: run.on.ranks)
        self.label = label or runs[0].method
        uses = [
            (float(np.median(use.seconds)) / calls, work, travelled, float(np.median(use.seconds)))
            for run in self.runs
            for use in run.uses
            if use.kind != BESIDE
            for work, travelled in [self._at(run, use)]
            if (calls := run.calls(use))
        ]
        self._check(machine)
        several = len({run.on.ranks for run in self.runs}) > 1 or self.runs[0].on.ranks == 1
        self.own = Network("the runs' own fit", fit(_weighed(uses), several))
        self.network = replace(self.own, name=machine.machine.name, machine=machine) if machine else self.own
        self.compute = compute(self.runs)
        self.memory: Compute = compute(self.runs, "memory")
        if machine:
            several, per_host = machine.between is not None, machine.machine.ranks_per_host
        else:
            several = max(run.on.hosts for run in self.runs) > 1
            per_host = max(run.on.within for run in self.runs)
        self._per_host = ranks_per_host or (per_host if several else 1 << 30)
        self._spread = max(_spread(run) for run in self.runs)
        self._residual = self._misses()

    @property
    def workers(self) -> int:
        """N of the largest run."""
        return max(run.on.workers for run in self.runs)

    def layout(self, ranks: int) -> Layout:
        """On how many hosts so many ranks are, and with how many workers."""
        beside = max(run.on.beside for run in self.runs)
        hosts = -(-ranks // self._per_host)
        workers = max(self.workers, ranks - beside)
        work = next((run.on.work for run in self.runs if run.on.workers == workers), ())
        return Layout(ranks, hosts, workers, beside, work)

    def predict(self, on: Layout, target: float | None = None) -> Prediction:
        """A round there.

        Raises:
            UserError: it has no rank with workers.
        """
        if on.hosting < 1:
            raise UserError(f"--ranks {on.ranks}: {on.beside} of them host no worker; there have to be more")
        run = max(self.runs, key=lambda run: run.on.ranks)
        seconds = {"compute": self.compute.of(on.heaviest)}
        nbytes, sent, sent_idle, notes = {}, 0.0, 0.0, self._beyond(on)
        for use in run.uses:
            if use.kind == BESIDE:
                seconds[use.name] = float(np.median(use.seconds))
                sent_idle += use.sent / run.on.beside if run.on.beside else 0.0
                continue
            price, travelled = self._use(run, use, on)
            seconds[use.name] = price.seconds
            nbytes[use.name], sent = price.nbytes, sent + travelled.sent
            notes += [text for text in price.extrapolated if text not in notes]
        round_seconds, parts, hidden = self._round(run, seconds, nbytes)
        half = self._half(on, bool(notes))
        rounds = self._rounds(target)
        several = self.memory.least < self.memory.most  # workers on a rank
        return Prediction(
            method=self.label,
            on=on,
            seconds=round_seconds,
            low=round_seconds / (1 + half),
            high=(round_seconds + hidden) * (1 + half),
            parts=parts,
            hidden=hidden,
            sent=sent,
            sent_idle=sent_idle,
            memory=self.memory.of(on.fullest) if several else run.memory,
            memory_idle=(self.memory.fixed if several else run.memory) * bool(on.beside),
            extrapolated=tuple(notes),
            grown=on.workers > self.workers,
            target=rounds * round_seconds if rounds is not None else math.nan,
            rounds=rounds or 0,
            dense=run.dense,
        )

    def _check(self, machine: Machine | None) -> None:
        if machine is None and max(run.on.ranks for run in self.runs) == 1:
            raise UserError(
                f"{self.label}: was measured on a single rank alone, which says nothing about a network; "
                "give runs on several ranks, or --machine FILE"
            )

    def _at(self, run: Measured, use: Use) -> tuple[Work, Travel]:
        """What a use of a run did, and what travelled by the formulas, corrected by what was counted."""
        work = run.work(use)
        counted = use.sent / run.calls(use) / run.on.hosting
        if work.kind == "sparse" and work.exchange == "auto":
            plans = [replace(work, exchange=plan) for plan in EXCHANGES]
            work = min(plans, key=lambda plan: abs(travel(plan, run.on).sent - counted))
        travelled = travel(work, run.on)
        factor = counted / travelled.sent if travelled.sent and counted else 1.0
        return work, _scaled(travelled, factor)

    def _use(self, run: Measured, use: Use, on: Layout) -> tuple[Price, Travel]:
        """All uses of a port in a round."""
        work, there = self._at(run, use)
        known = travel(work, run.on).sent
        factor = there.sent / known if known else 1.0
        plans = [work]
        if work.kind == "sparse" and run.work(use).exchange == "auto":
            plans = [replace(work, exchange=plan) for plan in EXCHANGES]
        priced = []
        for plan in plans:
            travelled = _scaled(travel(plan, on), factor if plan.exchange == work.exchange else 1.0)
            price = self.network.price(plan, on, travelled)
            priced.append((price.seconds + price.nbytes * self.network.per_byte, price, travelled))
        _, price, travelled = min(priced, key=lambda one: one[0])
        calls = run.calls(use)
        price = Price(price.seconds * calls, price.nbytes * calls, price.extrapolated)
        return price, _scaled(travelled, calls)

    def _round(
        self, run: Measured, seconds: dict[str, float], nbytes: dict[str, float]
    ) -> tuple[float, dict[str, float], float]:
        """T, its parts, and what is hidden; see the top."""
        wire, free = self.network.per_byte, self.network.burst
        mail = {name for name in nbytes if name.split("_")[0] == MAIL}
        w = sum(nbytes.values())
        there = sum(n for name, n in nbytes.items() if name not in mail)
        passes = max(0.0, there - free) / there if there else 0.0
        parts = dict(seconds)
        for name, n in nbytes.items():
            if name not in mail:
                parts[name] += n * wire * passes
        hidden = 0.0
        if run.overlaps and self.network.machine:  # else what was measured is what was left to wait for
            c, travels = (
                seconds["compute"],
                sum(v for k, v in parts.items() if k != "compute" and k not in mail),
            )
            hidden = min(c, travels)
        still = sum(seconds.values()) - seconds["compute"]  # h
        total = max(sum(parts.values()) - hidden, still * (not hidden) + w * wire)
        if (waits := total - sum(parts.values()) + hidden) > 0:
            parts["links full"] = waits
        return total, parts, hidden

    def _rounds(self, target: float | None) -> int | None:
        reached = [run.reached(target) for run in self.runs] if target is not None else []
        found = [rounds for rounds in reached if rounds is not None]
        return min(found) if found else None

    def _beyond(self, on: Layout) -> list[str]:
        """In what way it is beyond what was measured."""
        found = []
        most = max(run.on.ranks for run in self.runs)
        machine = self.network.machine
        if on.ranks > most and not (machine and machine.curves):
            found.append(
                f"runs on up to {most} ranks" + (", and no sums were measured there" if machine else "")
            )
        least, largest = self.compute.least, self.compute.most
        if not least <= on.heaviest <= largest:
            measured = f"{least:.4g}" if least == largest else f"{least:.4g} to {largest:.4g}"
            found.append(f"{on.heaviest:.4g} workers a rank, measured with {measured}")
        return found

    def _half(self, on: Layout, beyond: bool) -> float:
        """Of the interval, relative."""
        half = max(LEAST, 2 * math.sqrt(self._spread**2 + self._residual**2 + self.network.spread**2))
        most = max(run.on.ranks for run in self.runs)
        return half * (1 + math.log2(on.ranks / most)) if beyond and on.ranks > most else half

    def _misses(self) -> float:
        """By how much the runs' own fit misses the runs."""
        network, self.network = self.network, self.own
        errors = []
        for run in self.runs:
            uses = [use for use in run.uses if use.kind != BESIDE]
            prices = {use.name: self._use(run, use, run.on)[0] for use in uses}
            seconds = {use.name: float(np.median(use.seconds)) for use in run.uses if use.kind == BESIDE}
            seconds |= {"compute": float(np.median(run.compute))} | {k: p.seconds for k, p in prices.items()}
            total, _, _ = self._round(run, seconds, {k: p.nbytes for k, p in prices.items()})
            errors.append(total / float(np.median(run.seconds)) - 1)
        self.network = network
        return float(np.sqrt(np.mean(np.square(errors))))


def _scaled(of: Travel, factor: float) -> Travel:
    """As much more of it, in messages as long."""
    return Travel(of.within.times(factor), of.between.times(factor), of.sent * factor, of.worked * factor)


def _weighed(
    uses: Sequence[tuple[float, Work, Travel, float]],
) -> list[tuple[float, Work, Travel, float]]:
    """A port weighs by its share of all seconds: what takes no time may be missed."""
    most = max((use[3] for use in uses), default=0.0) or 1.0
    return [(s, work, of, math.sqrt(weight / most)) for s, work, of, weight in uses]


def _spread(run: Measured) -> float:
    """Half the interquartile range of the blocks over their median."""
    low, middle, high = np.quantile(run.seconds, [0.25, 0.5, 0.75])
    return float((high - low) / 2 / middle) if middle > 0 else 0.0
