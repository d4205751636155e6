"""What HDF5 tells of a run.h5: attributes, and where the datasets are. The numbers are read without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py

from hpcopt.errors import UserError
from hpcopt.ground import inside
from hpcopt.storage.file_like import Opened
from hpcopt.storage.image import COPIES
from hpcopt.storage.place import Place
from hpcopt.storage.schema import SCHEMA, SCHEMA_VERSION

LABELS = inside.NUMBERS + "OSU"


@dataclass(frozen=True)
class Structure:
    """Of one file; may be sent to another process.

    Attributes:
        identity: of the file, see `Opened.identity`.
        attributes: of the root.
        places: name -> where the dataset is.
        dims: name of a column -> its dimensions.
        units: name of a column -> its unit.
        labels: the coordinate of every dimension that does not lead.
    """

    identity: tuple[int, int]
    attributes: dict[str, Any]
    places: dict[str, Place] = field(default_factory=dict)
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    labels: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Opened, path: Path) -> Structure:
        """Of an opened file; ``path`` is for messages.

        Raises:
            UserError: it is not a run.h5, or one of a newer hpcopt.
            Exception: one of `hpcopt.ground.inside.FAULTS`: it is damaged.
        """
        with h5py.File(file, "r") as opened:
            found = cls(file.identity, header(opened, path))
            opened.visititems(found._see)
        return found

    def _see(self, name: str, found: h5py.Group | h5py.Dataset) -> None:
        """Takes down a dataset of the file."""
        if not isinstance(found, h5py.Dataset) or h5py.check_string_dtype(found.dtype) is not None:
            return
        inside.check(found)
        offset = found.id.get_offset()
        if offset is None and found.size:
            raise ValueError(f"/{name} is not contiguous: somebody has packed the file")
        self.places[name] = Place(offset or 0, found.shape, found.dtype)
        if not found.is_scale and not name.startswith(COPIES[1]):
            self.dims[name] = tuple(axis.label for axis in found.dims)
            self.units[name] = found.attrs["units"]
            for dim in self.dims[name][1:]:
                if dim not in self.labels:
                    self.labels[dim] = _labels(inside.dataset(found.parent, dim, LABELS))


def header(file: h5py.File, path: Path) -> dict[str, Any]:
    """The root attributes; raises as `Structure.read`."""
    found = {name: getattr(value, "item", lambda v=value: v)() for name, value in file.attrs.items()}
    if found.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a run.h5 of hpcopt")
    version = found["schema_version"]
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path}: was written by a newer hpcopt: it has schema version {version}, this one reads up to "
            f"{SCHEMA_VERSION}"
        )
    return found


def _labels(scale: h5py.Dataset) -> list[Any]:
    text = h5py.check_string_dtype(scale.dtype) is not None
    labels: list[Any] = (scale.asstr() if text else scale)[...].tolist()
    return labels
