"""scaling.h5: the raw samples of a scaling study, in one small file that is replaced as a whole. Local.

``/samples`` has a row for each block of rounds, between two records of one launch, after the warm-up; its
columns are `COLUMNS`, and `PHASES` with a dimension ``phase`` more. Phases that a launch does not have are
NaN. The root's attributes tell what was launched, as those of run.h5 do.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError
from hpcopt.ground import files
from hpcopt.storage.image import LIBVER

NAME = "scaling.h5"
SCHEMA = "hpcopt-scaling"
SCHEMA_VERSION = 1
GROUP, SAMPLE, PHASE = "samples", "sample", "phase"

COLUMNS: dict[str, tuple[type[np.generic], str]] = {
    "ranks": (np.int64, "1"),
    "workers": (np.int64, "1"),
    "hosts": (np.int64, "1"),
    "cores": (np.int64, "1"),  # that the ranks may use, over all hosts
    "repeat": (np.int64, "1"),
    "launch": (np.int64, "1"),  # its place in the order of all launches
    "block": (np.int64, "1"),
    "rounds": (np.int64, "1"),  # of the block
    "seconds": (np.float64, "s"),  # for all of them: the optimisation clock of the slowest rank
    "gradients": (np.float64, "1"),
    "bytes_sent": (np.float64, "B"),
    "peak_memory": (np.float64, "B"),  # of the largest rank until then
    "overcommitted": (np.int64, "1"),  # 1: more ranks than cores
}
"""column -> type and unit"""
PHASES = ("phase_seconds", "phase_seconds_min", "phase_seconds_mean")
"""of the ranks the largest, the smallest and the mean [s]"""

Sample = dict[str, Any]
"""column -> number; phase -> seconds, under each of `PHASES`"""


def unit_of(column: str) -> str:
    """The unit of a column."""
    return COLUMNS[column][1] if column in COLUMNS else "s"


def write(path: Path, attributes: Mapping[str, Any], samples: Sequence[Sample]) -> None:
    """Replaces the file.

    Raises:
        UserError: it cannot be written; what was there stays.
    """
    names = list(dict.fromkeys(phase for sample in samples for phase in sample[PHASES[0]]))
    # HDF5 writes to memory only: on a full disk it would crash the process
    image = io.BytesIO()
    with h5py.File(image, "w", libver=LIBVER) as file:
        file.attrs.update(dict(attributes) | {"schema": SCHEMA, "schema_version": SCHEMA_VERSION})
        group = file.create_group(GROUP)
        _scale(group, SAMPLE, np.arange(len(samples)))
        _scale(group, PHASE, np.array(names, dtype=h5py.string_dtype()))
        for name, (dtype, _) in COLUMNS.items():
            _column(group, name, np.array([sample[name] for sample in samples], dtype))
        for name in PHASES:
            rows = [[sample[name].get(phase, np.nan) for phase in names] for sample in samples]
            _column(group, name, np.array(rows, np.float64).reshape(len(samples), len(names)))
    with files.replacing(path) as partial:
        partial.write_bytes(image.getvalue())


def is_scaling(path: Path) -> bool:
    """Whether this is the file of a study, of whatever version."""
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("schema") == SCHEMA)
    except OSError:
        return False


def read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]], list[str]]:
    """The attributes, the columns and the names of the phases.

    Raises:
        UserError: it is not the file of a study, or not of a version that is known here.
    """
    try:
        with h5py.File(path, "r") as file:
            found = {key: getattr(value, "item", lambda v=value: v)() for key, value in file.attrs.items()}
            version = found.get("schema_version", 0)
            if found.get("schema") != SCHEMA:
                raise UserError(f"{path}: not a scaling.h5 of hpcopt")
            if version > SCHEMA_VERSION:
                raise UserError(
                    f"{path}: was written by a newer hpcopt: it has schema version {version}, this one reads "
                    f"up to {SCHEMA_VERSION}"
                )
            group = file[GROUP]
            columns = {name: group[name][...] for name in (*COLUMNS, *PHASES)}
            return found, columns, group[PHASE].asstr()[...].tolist()
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a readable scaling.h5 ({error})") from None


def _scale(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    _with_unit(group, name, values, "1").make_scale(name)


def _column(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    dataset = _with_unit(group, name, values, unit_of(name))
    for axis, dim in enumerate((SAMPLE, PHASE)[: values.ndim]):
        dataset.dims[axis].label = dim
        dataset.dims[axis].attach_scale(group[dim])


def _with_unit(group: h5py.Group, name: str, values: NDArray[Any], unit: str) -> h5py.Dataset:
    dataset = group.create_dataset(name, data=values)
    dataset.attrs["units"] = unit
    return dataset
