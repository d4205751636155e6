"""Predictions as tables on the terminal."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table

from hpcopt.costs.outlook import Outlook
from hpcopt.costs.prediction import Prediction
from hpcopt.ground.words import counted

UNITS = ("B", "kB", "MB", "GB", "TB")


def show(found: Outlook, console: Console | None = None) -> None:
    """Prints them."""
    console = console or Console(highlight=False)
    names = list(dict.fromkeys(name for row in found.rows for name in row.parts))
    table = Table(title="A round, predicted", caption=f"network: {found.network}", box=box.SIMPLE_HEAD)
    heads = ["ranks", "hosts", "workers", "method", "round [s]", "interval [s]", *names, "hidden [s]"]
    heads += ["sent/rank", "memory/rank", "to target [s]", ""]
    for head in heads:
        table.add_column(head, justify="left" if head in ("method", "") else "right")
    for row in found.rows:
        table.add_row(*_cells(row, names))
    console.print(table)
    for row in found.rows:
        if row.extrapolated:
            console.print(
                f"extrapolated: {row.method} on {counted(row.on.ranks, 'rank')}: "
                f"{'; '.join(row.extrapolated)}",
                markup=False,
            )
    for remark in found.remarks:
        console.print(remark, markup=False)


def _cells(row: Prediction, names: list[str]) -> list[str]:
    sent, memory = nbytes(row.sent), nbytes(row.memory)
    if row.on.beside:
        sent += f" ({nbytes(row.sent_idle)} without workers)"
        memory += f" ({nbytes(row.memory_idle)} without workers)"
    return [
        str(row.on.ranks),
        str(row.on.hosts),
        str(row.on.workers) + (" (grown)" if row.grown else ""),
        row.method,
        f"{row.seconds:.3g}",
        f"{row.low:.3g} to {row.high:.3g}",
        *(f"{row.parts[name]:.3g}" if name in row.parts else "" for name in names),
        f"{row.hidden:.3g}" if row.hidden else "",
        sent,
        memory,
        "" if math.isnan(row.target) else f"{row.target:.3g}",
        "extrapolated" if row.extrapolated else "",
    ]


def nbytes(value: float) -> str:
    """With a unit."""
    power = min(len(UNITS) - 1, int(math.log(value, 1000))) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {UNITS[power]}"
