"""A trained model by names, from a checkpoint: what its module's state_dict holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError
from hpcopt.ground import files
from hpcopt.storage import format

Arrays = dict[str, NDArray[Any]]


def export(
    run: str | Path,
    file: str | Path,
    *,
    round: int | None = None,
    worker: int | None = None,
    mean: bool = False,
) -> Path:
    """Writes a trained model: parameters, buffers, frozen and tied ones, under their names.

    A .pt file has the ``state_dict``: ``module.load_state_dict(torch.load("weights.pt"))``; a .npz file the
    same arrays, for which torch is not needed. Neither needs MPI.

    Where workers have models of their own, say of which worker it is to be, or that it is to be their mean;
    without either a .npz stacks them: one leading axis of length N. Of one model for all, buffers (statistics
    of batch normalisation) are the workers' mean, with which it is evaluated, too, or those of a worker.
    Checkpoints that were written before there was this have the trained parameters only.

    Args:
        run: the run's directory.
        file: the .pt or .npz to write.
        round: of which checkpoint; if None, of the newest one that is intact.
        worker: from 0.
        mean: of all workers, each counted the same.

    Returns:
        The checkpoint that was used.

    Raises:
        UserError: there is no such intact checkpoint or no such worker, it is not said which model is meant,
            or the file cannot be written.
    """
    run, file = files.home(run), files.home(file)
    write = _writers().get(file.suffix)
    if write is None:
        raise UserError(f"{file}: must end in .pt or .npz")
    if mean and worker is not None:
        raise UserError(f"worker = {worker} and mean: give one of them")
    path, arrays = _newest(run, round)
    named = _chosen(path, arrays, worker, mean, stacks=file.suffix == ".npz")
    with files.replacing(file) as partial:
        write(partial, named)
    return path


def _newest(run: Path, round: int | None) -> tuple[Path, _Checkpoint]:
    """The checkpoint of a round, or the newest that is intact."""
    damages = []
    known = format.listed(run / "checkpoints")
    paths = [path for path in known if round is None or path.name == format.name_of(round)]
    if known and not paths:
        rounds = ", ".join(str(int(path.stem.removeprefix("round-"))) for path in known)
        raise UserError(f"{run}: no checkpoint of round {round}; there are those of {rounds}")
    for path in reversed(paths):
        try:
            with format.sound():
                return path, _Checkpoint(path)
        except format.Damaged as error:
            damages.append(f"{path}: damaged: {error}")
    raise UserError("\n".join([*damages, f"{run}: no intact checkpoint to export from"]))


class _Checkpoint:
    """What of a checkpoint is the model, read and checked.

    Attributes:
        named: name -> array in the file, where in that it begins, its shape.
        arrays: (k,), or (N, k) with a row for each worker.
    """

    def __init__(self, path: Path) -> None:
        meta = format.read_meta(path)
        model = meta["model"]
        layout = meta["layout"]
        shapes = [tuple(shape) for shape in layout["shapes"]]
        starts = accumulate(map(prod, shapes), initial=0)
        parameters = [
            [name, model, start, shape]
            for name, start, shape in zip(layout["names"], starts, shapes, strict=False)
        ]
        self.named = {
            name: (array, start, tuple(shape)) for name, array, start, shape in meta.get("named", parameters)
        }
        wanted = {model} | {array for array, _, _ in self.named.values()}
        format.check(path, [extent for extent in format.extents(path, meta) if extent.name in wanted])
        self.arrays = {name: format.read_rows(path, name, 0, meta["arrays"][name][0]) for name in wanted}
        self.workers = int(meta["workers"]) if "workers" in meta else None
        flat = self.arrays[model]
        if flat.shape[-1] != sum(map(prod, shapes)):
            raise UserError(f"{path}: /state/{model} {flat.shape} is no model with parameters of {shapes}")
        self.model = model


def _chosen(path: Path, found: _Checkpoint, worker: int | None, mean: bool, stacks: bool) -> Arrays:
    """The arrays by name: of one model, or of all workers' stacked."""
    own = found.arrays[found.model].ndim > 1
    workers = max((len(array) for array in found.arrays.values() if array.ndim > 1), default=found.workers)
    if worker is not None and workers is not None and not 0 <= worker < workers:
        raise UserError(f"{path}: no worker {worker}; allowed are 0 to {workers - 1}")
    if own and worker is None and not mean and not stacks:
        raise UserError(
            f"{path}: its {workers} workers have models of their own: say which (--worker I, worker=I in "
            "Python), or that it is to be their mean (--mean, mean=True)"
        )
    stacked = own and worker is None and not mean

    def one(array: NDArray[Any]) -> NDArray[Any]:
        if array.ndim == 1 or stacked:
            return array
        if worker is not None:
            return array[worker]
        return array.mean(0, dtype=np.float64).astype(array.dtype)

    vectors = {name: one(array) for name, array in found.arrays.items()}
    named: Arrays = {}
    for name, (array, start, shape) in found.named.items():
        vector = vectors[array]
        named[name] = vector[..., start : start + prod(shape)].reshape((*vector.shape[:-1], *shape))
    return named


def _writers() -> Mapping[str, Callable[[Path, Arrays], None]]:
    return {".npz": _write_npz, ".pt": _write_pt}


def _write_npz(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def _write_pt(path: Path, arrays: Arrays) -> None:
    try:
        from hpcopt.report.torch_file import save
    except ImportError:
        raise UserError("a .pt file needs torch: pip install 'hpcopt[run]', or write a .npz") from None
    save(path, arrays)
