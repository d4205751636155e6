"""Results as xarray, on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hpcopt.errors import UserError

if TYPE_CHECKING:
    import xarray


def load(path: str | Path) -> xarray.DataTree:
    """A run's results, also while it runs or after it was killed.

    Args:
        path: the run's directory, or its run.h5.

    Returns:
        The groups of run.h5, in memory: ``load("runs/mine")["metrics/loss"]``. Dimension ``record`` holds the
        complete records only; the root's ``attrs`` hold config and provenance.

    Raises:
        UserError: there is no readable run.h5.
    """
    import numpy as np
    import xarray

    path = Path(path)
    file = path / "run.h5" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file; name a run's directory or its run.h5")
    try:
        with xarray.open_datatree(file, engine="h5netcdf") as tree:
            loaded = tree.load()
        rounds = np.asarray(loaded["metrics/round"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{file}: not a readable run.h5 ({error})") from None
    # records are written one after the other: the first gap is the end
    count = int(np.argmin(np.append(rounds >= 0, False)))
    return loaded.map_over_datasets(lambda group: _first(group, count))


def _first(group: xarray.Dataset, count: int) -> xarray.Dataset:
    return group.isel(record=slice(count)) if "record" in group.dims else group
