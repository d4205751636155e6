"""Makes the HDF5 data file from idx or .npz files, in bounded memory whatever their size.

Sparse data come by `hpcopt.problems.data.sparse_importer`.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from hpcopt.errors import UserError
from hpcopt.math.streams import stream
from hpcopt.problems.data.columns import damage_is_user_error
from hpcopt.problems.data.feeds import Feed, write_feeds
from hpcopt.problems.data.hdf5 import describe
from hpcopt.problems.data.idx import open_idx
from hpcopt.problems.data.npz import npz_names, open_npz
from hpcopt.problems.data.sparse_importer import import_svmlight

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hpcopt.problems.data.columns import Column
    from hpcopt.problems.data.feeds import Report

__all__ = ["describe", "import_idx", "import_npz", "import_svmlight"]

IDX_NAME = re.compile(
    r"(?P<prefix>.*)(?P<what>images|labels)[-.]idx\d+(?:[-.]ubyte)?(?P<gz>\.gz)?", re.IGNORECASE
)


def import_idx(source: Path, out: Path, progress: Report | None = None) -> None:
    """Imports files of MNIST's format, of any rank and dtype, plain or .gz.

    Args:
        source: a directory with …train-images-idx3-ubyte[.gz], …train-labels-idx1-ubyte[.gz] and, for test
            rows, the same with t10k or test for train; or one images file, whose labels file lies beside it
            (training rows only).
        out: the file to make, .h5 or .hdf5; must not exist.
        progress: called after every block with the rows done and the rows in all.

    Raises:
        UserError: names the file and what is wrong with it; then ``out`` does not exist.
    """
    pairs = _idx_directory(source) if os.path.isdir(source) else {"train": (source, _labels_beside(source))}
    with ExitStack() as stack:
        feeds = [
            Feed(stack.enter_context(open_idx(images)), stack.enter_context(open_idx(labels)), split)
            for split, (images, labels) in pairs.items()
        ]
        names = ", ".join(path.name for pair in pairs.values() for path in pair)
        write_feeds(out, feeds, names, progress)


def import_npz(
    source: Path, out: Path, progress: Report | None = None, test_fraction: float | None = None
) -> None:
    """Imports an .npz file, compressed or not.

    Args:
        source: holds x_train, y_train and perhaps x_test, y_test; or x, y (training rows only, unless
            ``test_fraction`` is given).
        out: the file to make, .h5 or .hdf5; must not exist.
        progress: called after every block with the rows done and the rows in all.
        test_fraction: the part of all rows, in (0, 1), that becomes test rows: always the same ones, drawn
            from all.

    Raises:
        UserError: names the file and what is wrong with it; then ``out`` does not exist.
    """
    pairs = _npz_pairs(source, test_fraction)
    with ExitStack() as stack:
        feeds = [
            Feed(stack.enter_context(open_npz(source, x)), stack.enter_context(open_npz(source, y)), split)
            for split, (x, y) in pairs.items()
        ]
        if test_fraction is not None:
            feeds[0].is_test = _drawn(feeds[0].x, test_fraction)
        write_feeds(out, feeds, source.name, progress)


def _idx_directory(folder: Path) -> dict[str, tuple[Path, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for path in _listing(folder):
        match = IDX_NAME.fullmatch(path.name)
        split = match and re.search(r"(train|t10k|test)[-_.]?$", match["prefix"], re.IGNORECASE)
        if not match or not split:
            continue
        files = found.setdefault("train" if split[1].lower() == "train" else "test", {})
        other = files.setdefault(match["what"].lower(), path)
        if other != path and other.name != path.name.removesuffix(".gz"):
            raise UserError(f"{folder}: both {other.name} and {path.name} fit; leave one of them")
    if "train" not in found:
        raise UserError(f"{folder}: holds no train-images-idx3-ubyte or train-images-idx3-ubyte.gz")
    for split_name, files in found.items():
        for what in ("images", "labels"):
            if what not in files:
                raise UserError(
                    f"{folder}: the {split_name} {what} are missing beside {next(iter(files.values())).name}"
                )
    return {
        name: (found[name]["images"], found[name]["labels"]) for name in ("train", "test") if name in found
    }


def _listing(folder: Path) -> list[Path]:
    with damage_is_user_error(str(folder)):
        return sorted(folder.iterdir())


def _labels_beside(images: Path) -> Path:
    match = IDX_NAME.fullmatch(images.name)
    if not os.path.isfile(images) or not match or match["what"].lower() != "images":
        raise UserError(f"{images}: not a directory and not a file named like train-images-idx3-ubyte[.gz]")
    for path in _listing(images.parent):
        other = IDX_NAME.fullmatch(path.name)
        if other and other["what"].lower() == "labels" and other["prefix"] == match["prefix"]:
            return path
    raise UserError(f"{images}: no labels file {match['prefix']}labels-idx1-ubyte[.gz] beside it")


def _npz_pairs(source: Path, test_fraction: float | None) -> dict[str, tuple[str, str]]:
    names = set(npz_names(source))
    plain = {"x", "y"} <= names
    if test_fraction is not None and not (0 < test_fraction < 1 and plain):
        raise UserError(
            f"{source}: test_fraction = {test_fraction} must be in (0, 1), and the arrays x and y"
        )
    if plain:
        return {"train": ("x", "y")}
    pairs = {split: (f"x_{split}", f"y_{split}") for split in ("train", "test")}
    if not names.issuperset(pairs["train"]):
        raise UserError(
            f"{source}: needs x_train and y_train (and x_test, y_test), or x and y; it holds "
            f"{', '.join(sorted(names)) or 'no arrays'}"
        )
    if names.isdisjoint(pairs["test"]):
        return {"train": pairs["train"]}
    if not names.issuperset(pairs["test"]):
        raise UserError(f"{source}: needs both x_test and y_test, or neither")
    return pairs


def _drawn(x: Column, fraction: float) -> NDArray[np.bool_]:
    rows = x.shape[0] if x.shape else 0
    chosen = round(fraction * rows)
    if not 0 < chosen < rows:
        raise UserError(
            f"{x.name}: test_fraction = {fraction} of {rows} rows leaves no train or no test rows"
        )
    # Drawn, not every k-th: rows may be sorted by class, or go round the classes.
    is_test = np.zeros(rows, np.bool_)
    is_test[stream(0, "test rows").choice(rows, chosen, replace=False, shuffle=False)] = True
    return is_test
