"""What runs of schema version 1 counted, for a job that goes on with them.

Version 1 had a counter for each port, where there is now one for each thing that a port does: ``reduce`` took
sums, scalars and halves of sums together. What it counted cannot be told apart afterwards, so its ports stay,
under their names, beside today's; they no longer change, and every sum over ports stays right.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from hpcopt.errors import UserError

PORTS = {"reduce", "sparse", "neighbours"}
COUNTERS = {"bytes", "bytes_workers", "calls", "seconds", "passes"}


def carried(
    meta: Mapping[str, Any], ports: Collection[str], counters: Collection[str], where: object
) -> dict[str, Any]:
    """The totals of a checkpoint, as a job with these ports goes on from them.

    Args:
        meta: the checkpoint's, of any version.
        ports: the ports of the job.
        counters: what is counted for each of them.
        where: the checkpoint, for messages.

    Returns:
        As ``meta["totals"]``, with the checkpoint's ports first and then those that are new, at 0. What
        version 1 did not count yet is NaN at its ports, and so in every sum.

    Raises:
        UserError: they are not what version 1 can have written.
    """
    totals: dict[str, Any] = dict(meta["totals"])
    earlier: dict[str, dict[str, float]] = totals["ports"]
    if meta["schema_version"] == 1:
        _check(earlier, ports, where)
    kept = {name: {key: port.get(key, math.nan) for key in counters} for name, port in earlier.items()}
    new = {name: dict.fromkeys(counters, 0.0) for name in ports if name not in earlier}
    return totals | {"ports": kept | new}


def _check(earlier: Mapping[str, Mapping[str, float]], ports: Collection[str], where: object) -> None:
    strange = [name for name, port in earlier.items() if name not in PORTS or port.keys() != COUNTERS]
    if strange:
        raise UserError(f"{where}: has counters {', '.join(strange)} that version 1 did not write")
    both = sorted(earlier.keys() & set(ports))
    if both:
        raise UserError(f"{where}: counts {', '.join(both)} as version 1 did; these are now other ports")
