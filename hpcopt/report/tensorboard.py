"""A run's metrics for TensorBoard."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError
from hpcopt.ground import files
from hpcopt.report.load import load


def export(run: str | Path, directory: str | Path) -> int:
    """Writes a run's metrics and the workers' spread as scalars, by round, to an events file.

    Tags are the columns' names, ``metrics/loss``; of what workers differ in, ``workers/loss/min``, ``median``
    and ``max``. An event's time is that of the optimisation clock after the run's start. What was not
    measured (NaN) is left out.

    Args:
        run: the run's directory, or its run.h5.
        directory: gets one more events file; may not hold one, whose curves would be mixed with these.

    Returns:
        How many records there are.

    Raises:
        UserError: there is no such run, or the directory has events, or cannot be written.
    """
    from tensorboardX import SummaryWriter

    tree, directory = load(run), Path(directory)
    if any(directory.glob("events.out.tfevents.*")):
        raise UserError(f"{directory}: already holds events for TensorBoard; choose another directory")
    metrics = tree["metrics"].to_dataset()
    columns = {f"metrics/{name}": np.asarray(metrics[name]) for name in metrics if name != "round"}
    if "workers" in tree.children:
        for name, column in tree["workers"].data_vars.items():
            columns |= _spread(f"workers/{name}", np.asarray(column))
    rounds, seconds = np.asarray(metrics["round"]), np.asarray(metrics["seconds"])
    begun = datetime.fromisoformat(tree.attrs["start"]).timestamp()
    with files.refusals(directory), SummaryWriter(str(directory)) as writer:
        for at in range(len(rounds)):
            for tag, values in columns.items():
                if not np.isnan(values[at]):
                    writer.add_scalar(tag, values[at], int(rounds[at]), begun + float(seconds[at]))
    return len(rounds)


def _spread(name: str, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Of (records, workers); NaN where a record has none."""
    known = np.ma.masked_invalid(rows)
    some = {"min": known.min(1), "median": np.ma.median(known, axis=1), "max": known.max(1)}
    return {f"{name}/{which}": np.ma.filled(values, np.nan) for which, values in some.items()}
