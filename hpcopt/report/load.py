"""Results as xarray, on any machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hpcopt.errors import UserError
from hpcopt.ground.files import home

if TYPE_CHECKING:
    import xarray

    from hpcopt.storage.structure import Structure

SMALL_BYTES = 16 << 20
"""hundreds of runs may be loaded at once without as many open files"""


def load(path: str | Path) -> xarray.DataTree:
    """A run's results, also while it runs or after it was killed; or the samples of a scaling study.

    Args:
        path: the run's directory, or its run.h5; a study's directory, or its scaling.h5.

    Returns:
        The groups of run.h5, cut to what is valid when it is called: ``load("runs/mine")["metrics/loss"]``.
        The root's ``attrs`` hold config and provenance.

        A file of at most `SMALL_BYTES` is read at once. The numbers of a larger one are read when they are
        first asked for (all of them are compared with their digests then, if the run has ended), from the
        file that was opened here: it stays readable when the run goes on, finishes or is removed.
        ``tree.load()`` reads everything; ``tree.close()``, or a ``with`` around it, closes the file. A copy
        of it, in another process too, has the numbers in memory.

    Raises:
        UserError: there is no run.h5 or scaling.h5 that this hpcopt can read, or it is damaged.
    """
    from hpcopt.storage import scaling

    path = home(path)
    # unlike Path.is_dir, os.path takes any name
    file = path / "run.h5" if os.path.isdir(path) else path
    study = path / scaling.NAME if os.path.isdir(path) and not os.path.exists(file) else path
    if os.path.isfile(study) and scaling.is_scaling(study):
        return _study(study)
    if not os.path.isfile(file):
        raise UserError(f"{file}: no such file; name a run's directory or its run.h5")
    return load_run(file)


def load_run(file: Path, structure: Structure | None = None) -> xarray.DataTree:
    """A run.h5, as `load` does it; see `Records` for its structure."""
    from hpcopt.report.lazy import tree_of
    from hpcopt.storage.records import Records

    small = file.stat().st_size <= SMALL_BYTES
    tree = tree_of(Records(file, at_once=small, structure=structure))
    if small:
        tree.load()
        tree.close()
    return tree


def _study(path: Path) -> xarray.DataTree:
    """The samples of a scaling study, which are few."""
    import numpy as np
    import xarray

    from hpcopt.storage import scaling

    attributes, columns, phases = scaling.read(path)
    dims = {name: (scaling.SAMPLE, scaling.PHASE)[: column.ndim] for name, column in columns.items()}
    variables = {
        name: (dims[name], column, {"units": scaling.unit_of(name)}) for name, column in columns.items()
    }
    count = len(columns["seconds"])
    coordinates = {
        scaling.SAMPLE: (scaling.SAMPLE, np.arange(count), {"units": "1"}),
        scaling.PHASE: (scaling.PHASE, phases, {"units": "1"}),
    }
    samples = xarray.Dataset(variables, coordinates)
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attributes), scaling.GROUP: samples})
