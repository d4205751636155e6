"""Trained parameters by name, from a checkpoint."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError
from hpcopt.ground import files
from hpcopt.storage import format


def export(run: str | Path, file: str | Path) -> Path:
    """Writes the parameters of the newest intact checkpoint to an .npz file, one array per name.

    One model for all workers gives arrays of the parameters' shapes, whether every rank held all of it or a
    slice; models of their own are stacked: one leading axis of length N. Needs neither MPI nor torch.

    Args:
        run: the run's directory.
        file: the .npz to write.

    Returns:
        The checkpoint that was used.

    Raises:
        UserError: there is no intact checkpoint, or the file cannot be written.
    """
    run, file = files.home(run), files.home(file)
    if file.suffix != ".npz":
        raise UserError(f"{file}: must end in .npz")
    damages = []
    for path in reversed(format.listed(run / "checkpoints")):
        try:
            with format.sound():
                arrays = _parameters(path)
        except format.Damaged as error:
            damages.append(f"{path}: damaged: {error}")
            continue
        with files.replacing(file) as partial, partial.open("wb") as stream:
            np.savez(stream, **arrays)
        return path
    raise UserError("\n".join([*damages, f"{run}: no intact checkpoint to export from"]))


def _parameters(path: Path) -> dict[str, Any]:
    meta = format.read_meta(path)
    name = meta["model"]
    format.check(path, [extent for extent in format.extents(path, meta) if extent.name == name])
    flat = format.read_rows(path, name, 0, meta["arrays"][name][0])
    shapes = [tuple(shape) for shape in meta["layout"]["shapes"]]
    if flat.shape[-1] != sum(map(prod, shapes)):
        raise UserError(f"{path}: /state/{name} {flat.shape} is no model with parameters of {shapes}")
    arrays: dict[str, NDArray[Any]] = {}
    at = 0
    for parameter, shape in zip(meta["layout"]["names"], shapes, strict=True):
        arrays[parameter] = flat[..., at : at + prod(shape)].reshape((*flat.shape[:-1], *shape))
        at += prod(shape)
    return arrays
