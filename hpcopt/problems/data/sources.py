"""From a name or a path to a data set."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hpcopt.errors import UserError
from hpcopt.ground.files import home
from hpcopt.ground.words import suggestion
from hpcopt.problems.data.arrays import assemble
from hpcopt.problems.data.dataset import Dataset, moments_of
from hpcopt.problems.data.hdf5 import open_hdf5
from hpcopt.problems.data.idx import load_idx

DEBIAN = Path("/usr/share/datasets")
FASHION_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
DIGITS_TEST_EVERY = 6


def open_dataset(name_or_path: str) -> Dataset:
    """The data set of this name, or in this file.

    Args:
        name_or_path: "fashion-mnist", "digits", or the path of an .h5 or .hdf5 file made by the import.

    Returns:
        The data set. The built-in ones are held in memory whole (47 MB and less); a file is read row by row.

    Raises:
        UserError: there is no such data set, or it is absent or damaged; says what to do.
    """
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]()
    path = home(name_or_path)
    if path.suffix in (".h5", ".hdf5"):
        return open_hdf5(path)
    allowed = 'allowed are "fashion-mnist", "digits" and the path of an .h5 or .hdf5 file'
    raise UserError(f'dataset = "{name_or_path}" is not known: {allowed}{_hint(name_or_path)}')


def _hint(name: str) -> str:
    if os.path.exists(home(name)):  # unlike Path.exists, it takes any name
        return "; make one of this with `hpcopt data import`"
    return suggestion(name.lower().replace("_", "-"), BUILT_IN, '"')


def _fashion_mnist() -> Dataset:
    """Fashion-MNIST: 60,000 and 10,000 images (1, 28, 28) uint8 of 10 kinds of clothes."""
    folder = _fashion_folder()
    train_x, train_y, test_x, test_y = (load_idx(folder / name) for name in FASHION_FILES)
    for images, labels, name in ((train_x, train_y, FASHION_FILES[0]), (test_x, test_y, FASHION_FILES[2])):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(
                f"{folder / name}: images of shape {images.shape} do not fit the labels' {labels.shape}"
            )
    moments = moments_of(train_x)
    return assemble("fashion-mnist", train_x[:, None], train_y, test_x[:, None], test_y, moments)


def _fashion_folder() -> Path:
    """The first directory that holds Fashion-MNIST; the user's own comes before the system's."""
    roots = [Path(os.environ["HPCOPT_DATA"])] if os.environ.get("HPCOPT_DATA") else []
    folders = [root / "fashion-mnist" for root in (*roots, DEBIAN)]
    for folder in folders:
        if (folder / FASHION_FILES[0]).exists():
            return folder
    raise UserError(
        f'dataset "fashion-mnist" was not found: looked for {FASHION_FILES[0]} in '
        f"{' and '.join(map(str, folders))}. Either `apt-get install dataset-fashion-mnist`, or set the "
        f"environment variable HPCOPT_DATA to a directory whose fashion-mnist/ holds the four .gz files"
    )


def _digits() -> Dataset:
    """scikit-learn's digits: 1,498 and 299 images (1, 8, 8) uint8 with values 0…16; every 6th row is test."""
    rows = np.loadtxt(_digits_file(), delimiter=",", dtype=np.uint8)
    x, y = rows[:, :-1].reshape(-1, 1, 8, 8), rows[:, -1].astype(np.int64)
    test = np.arange(len(x)) % DIGITS_TEST_EVERY == DIGITS_TEST_EVERY - 1
    return assemble("digits", x[~test], y[~test], x[test], y[test], moments_of(x[~test]))


def _digits_file() -> Path:
    """Where scikit-learn has them; to import it would cost every rank a second."""
    found = find_spec("sklearn")
    folders = (found.submodule_search_locations or ()) if found else ()
    files = [Path(folder) / "datasets/data/digits.csv.gz" for folder in folders]
    if not any(file.is_file() for file in files):
        raise UserError('dataset "digits" needs scikit-learn: pip install "hpcopt[data]"')
    return next(file for file in files if file.is_file())


BUILT_IN = {"fashion-mnist": _fashion_mnist, "digits": _digits}
