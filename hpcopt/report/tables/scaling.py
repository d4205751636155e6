"""Scaling studies: time, speed-up and efficiency with intervals, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcopt.report.runs import Scaling
from hpcopt.report.tables.costs import Times
from hpcopt.report.tables.table import Cell, Table, columns


def points(studies: Sequence[Scaling]) -> Table:
    """A row for each study and number of ranks."""
    from hpcopt.report.statistics import by, scaling, seconds_of_a_round

    rows: list[list[Cell]] = []
    for study in studies:
        samples = study.tree["samples"]
        ranks, mode = np.asarray(samples["ranks"]), study.tree.attrs["mode"]
        each = by(ranks, seconds_of_a_round(np.asarray(samples["seconds"]), np.asarray(samples["rounds"])))
        for point in scaling(each, mode):
            here = ranks == point.ranks
            conditions = [int(np.asarray(samples[name])[here][0]) for name in ("workers", "hosts", "cores")]
            crowded = np.asarray(samples["overcommitted"])[here].any()
            warnings = ["more ranks than cores"] * bool(crowded) + ["beyond ideal"] * point.beyond
            time, faster, efficiency, serial = point.time, point.speedup, point.efficiency, point.serial
            rows.append(
                [
                    *(study.name, mode, point.ranks, *conditions, time.count),
                    *(time.value, time.low, time.high, time.interval),
                    *(faster.value, faster.low, faster.high, efficiency.value, serial.value),
                    "; ".join(warnings) or None,
                ]
            )
    return Table(
        "scaling",
        "Scaling",
        "Medians of the seconds of a round of the slowest rank, over blocks of rounds of all repeats; "
        "speed-up and efficiency against the fewest ranks; serial fraction after Karp and Flatt (strong "
        "scaling); beyond ideal: with all of the speed-up's interval, by more cache, say.",
        columns(
            *("study", "mode", "ranks [1]", "workers [1]", "hosts [1]", "cores [1]", "samples [1]"),
            *("time of a round [s]", "low [s]", "high [s]", "low to high"),
            *("speed-up [1]", "speed-up low [1]", "speed-up high [1]", "efficiency [1]"),
            *("serial fraction [1]", "warning"),
        ),
        rows,
    )


def shares(studies: Sequence[Scaling]) -> Table:
    """Where the time of a study goes, a row for each number of ranks."""
    rows: list[list[Cell]] = []
    for study in studies:
        samples = study.tree["samples"]
        phases = [str(phase) for phase in np.asarray(samples["phase"])]
        largest, smallest, mean = (  # a phase that a launch does not have took it no time
            np.nan_to_num(np.asarray(samples[f"phase_seconds{which}"])) for which in ("", "_min", "_mean")
        )
        ranks, seconds = np.asarray(samples["ranks"]), np.asarray(samples["seconds"])
        for count in np.unique(ranks):
            here = ranks == count
            found = [
                Times.of(phases, largest[at], smallest[at], mean[at], float(seconds[at]))
                for at in np.flatnonzero(here)
            ]
            total = np.nanmedian(
                [[one.share, one.imbalance, one.waiting / one.seconds] for one in found], axis=0
            )
            rows.append([study.name, int(count), len(found), *total.tolist()])
    return Table(
        "shares",
        "Communication and imbalance",
        "Medians over the samples; communication and waiting as shares of the clock of the slowest rank, as "
        "in the table of a run's time.",
        columns(
            "study",
            "ranks [1]",
            "samples [1]",
            "communication share [1]",
            "imbalance [1]",
            "waiting share [1]",
        ),
        rows,
    )
