"""Data sets by name, from arrays, and from files that are whole, damaged or not ours."""

import gzip
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpcopt.errors import UserError
from hpcopt.problems.data import array_dataset, open_dataset
from hpcopt.problems.data.dataset import Moments
from hpcopt.problems.data.sources import DEBIAN, FASHION_FILES

FASHION = DEBIAN / "fashion-mnist"
needs_fashion = pytest.mark.skipif(
    not (FASHION / FASHION_FILES[0]).exists(), reason="dataset-fashion-mnist is not installed"
)


def idx_bytes(array: np.ndarray) -> bytes:
    kinds = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    head = struct.pack(">HBB", 0, kinds[array.dtype.str[1:]], array.ndim)
    return (
        head
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def write_fashion(root: Path, rows: int = 30) -> Path:
    folder = root / "fashion-mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in FASHION_FILES:
        size = rows if name.startswith("train") else 7
        array = rng.integers(0, 255, (size, 28, 28)) if "images" in name else np.arange(size) % 10
        (folder / name).write_bytes(gzip.compress(idx_bytes(array.astype(np.uint8))))
    return folder


@needs_fashion
def test_fashion_mnist_is_what_its_bytes_say(monkeypatch):
    monkeypatch.delenv("HPCOPT_DATA", raising=False)
    data = open_dataset("fashion-mnist")
    raw = np.frombuffer(gzip.decompress((FASHION / FASHION_FILES[0]).read_bytes()), np.uint8, offset=16)
    images = raw.reshape(60000, 1, 28, 28)
    assert (len(data.train), len(data.test), data.train.shape, data.classes) == (
        60000,
        10000,
        (1, 28, 28),
        10,
    )
    assert data.train.labels.dtype == np.int64
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    rows = np.array([59999, 0, 17, 0])
    assert np.array_equal(data.train.read(rows), images[rows])
    assert np.allclose([data.mean, data.std], [images.mean(dtype=float), images.std(dtype=float)], rtol=1e-12)


def test_hpcopt_data_comes_first_and_absence_names_both_remedies(monkeypatch, tmp_path):
    write_fashion(tmp_path)
    monkeypatch.setenv("HPCOPT_DATA", str(tmp_path))
    assert len(open_dataset("fashion-mnist").train) == 30
    monkeypatch.setenv("HPCOPT_DATA", str(tmp_path / "none"))
    monkeypatch.setattr("hpcopt.problems.data.sources.DEBIAN", tmp_path / "nowhere")
    with pytest.raises(UserError) as error:
        open_dataset("fashion-mnist")
    for part in (
        "none/fashion-mnist",
        "nowhere/fashion-mnist",
        "apt-get install dataset-fashion-mnist",
        "HPCOPT_DATA",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("kept", [0, 1, 5, 11, 20, 0.5, 0.9, -9, -1])
@pytest.mark.parametrize("name", FASHION_FILES[:2])
def test_a_truncated_gzip_is_named(monkeypatch, tmp_path, name, kept):
    path = write_fashion(tmp_path) / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    monkeypatch.setenv("HPCOPT_DATA", str(tmp_path))
    with pytest.raises(UserError, match=name):
        open_dataset("fashion-mnist")


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x00\x08\x03" + b"\xff" * 12,  # a header that promises 7e28 bytes
        b"\x89PNG" + bytes(40),
        idx_bytes(np.zeros((30, 28, 28), np.uint8)) + b"x",
        idx_bytes(np.zeros((29, 28, 28), np.uint8)),  # fewer images than labels
        idx_bytes(np.zeros((30, 28, 28), np.uint8))[:-1],
    ],
    ids=["lying header", "not idx", "trailing", "rows", "short"],
)
def test_wrong_idx_is_named(monkeypatch, tmp_path, content):
    path = write_fashion(tmp_path) / FASHION_FILES[0]
    path.write_bytes(gzip.compress(content))
    monkeypatch.setenv("HPCOPT_DATA", str(tmp_path))
    with pytest.raises(UserError, match=path.name):
        open_dataset("fashion-mnist")


def test_a_flipped_bit_in_gzip_is_noticed(monkeypatch, tmp_path):
    path = write_fashion(tmp_path) / FASHION_FILES[0]
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 1  # in the checksum, the only place that data alone would not betray
    path.write_bytes(whole)
    monkeypatch.setenv("HPCOPT_DATA", str(tmp_path))
    with pytest.raises(UserError, match=path.name):
        open_dataset("fashion-mnist")


def test_digits_every_sixth_row_is_test(monkeypatch):
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    data, images = open_dataset("digits"), load_digits().images
    assert np.array_equal(data.test.read(np.arange(len(data.test)))[:, 0], images[5::6])
    assert (len(data.train), len(data.test), data.train.shape, data.classes) == (1498, 299, (1, 8, 8), 10)
    monkeypatch.setattr("hpcopt.problems.data.sources.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hpcopt\[data\]"):
        open_dataset("digits")


def test_unknown_names_get_a_suggestion(tmp_path):
    with pytest.raises(UserError, match='did you mean "fashion-mnist"'):
        open_dataset("FashionMNIST")
    with pytest.raises(UserError, match="allowed are"):
        open_dataset("imagenet")
    (tmp_path / "x.npz").touch()
    with pytest.raises(UserError, match="hpcopt data import"):
        open_dataset(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, np.ndarray.tolist])
def test_array_dataset(convert):
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 2, 1, 0, 2, 1], np.int32)
    data = array_dataset((convert(x), convert(y)), (convert(x[:2]), convert(y[:2])))
    assert (data.classes, data.mean, data.std, data.train.shape) == (3, 0.0, 1.0, (2,))
    assert np.array_equal(data.train.read(np.array([4, 1])), x[[4, 1]])
    assert data.test.labels.tolist() == [0, 2]
    assert data.test.labels.dtype == np.int64
    assert array_dataset((x, y + 0.5), None).classes is None
    assert array_dataset((x, 2 * y - 3)).classes is None
    with pytest.raises(IndexError):
        data.train.read(np.array([-1]))
    with pytest.raises(UserError, match="equally many rows"):
        array_dataset((x, y[:5]))
    with pytest.raises(UserError, match="one row of test"):
        array_dataset((x, y), (x[:, :1], y))


def write_h5(path: Path, **storage) -> np.ndarray:
    x = np.random.default_rng(0).integers(0, 255, (1000, 1, 20, 30)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("train/x", data=x, **storage)
        file["train/y"] = np.arange(1000, dtype=np.uint8) % 7
        file.attrs.update(schema="hpcopt-data", schema_version=1, mean=x.mean(), std=x.std(), classes=7)
    return x


@pytest.mark.parametrize(
    "storage", [{}, {"chunks": (7, 1, 20, 30), "compression": "gzip"}, {"chunks": (64, 1, 10, 30)}]
)
@pytest.mark.parametrize("gap", [0, 2000, 1 << 20])
def test_hdf5_rows_come_in_the_order_asked(tmp_path, monkeypatch, storage, gap):
    monkeypatch.setattr("hpcopt.problems.data.hdf5.GAP_BYTES", gap)
    monkeypatch.setattr("hpcopt.problems.data.hdf5.RUN_BYTES", 100_000)
    x = write_h5(tmp_path / "a.h5", **storage)
    data = open_dataset(str(tmp_path / "a.h5"))
    rng = np.random.default_rng(1)
    for rows in (
        rng.permutation(1000),
        rng.integers(0, 1000, 50),
        np.array([999, 0, 999]),
        np.array([], int),
    ):
        with h5py.File(tmp_path / "a.h5", "r", locking=False):  # another reader at the same time
            assert np.array_equal(data.train.read(rows), x[rows])
    assert (data.test, data.classes, data.train.labels.dtype) == (None, 7, np.int64)
    for wrong in ([1000], [-1], [0.5]):
        with pytest.raises(IndexError):
            data.train.read(np.array(wrong))


def test_reading_few_rows_of_a_large_file_is_lean(tmp_path):
    import tracemalloc

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train/x", (200_000, 1000), "u1")[-1] = 0  # 200 MB, of which one row is written
        file["train/y"] = np.zeros(200_000, np.uint8)
        file.attrs.update(schema="hpcopt-data", schema_version=1, mean=0.0, std=1.0, classes=1)
    tracemalloc.start()
    data = open_dataset(str(tmp_path / "a.h5"))
    data.train.read(np.arange(0, 200_000, 1000))
    data.train.read(np.arange(0, 10_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_truncated_hdf5_is_named(tmp_path, kept):
    path = tmp_path / "a.h5"
    write_h5(path)
    data, whole = open_dataset(str(path)), path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    for attempt in (lambda: open_dataset(str(path)), lambda: data.train.read(np.arange(1000))):
        with pytest.raises(UserError, match=r"a\.h5"):
            attempt()


def test_files_that_are_not_ours_are_named(tmp_path):
    path = tmp_path / "b.hdf5"
    with pytest.raises(UserError, match=r"b\.hdf5.*no such file"):
        open_dataset(str(path))
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "something"
    with pytest.raises(UserError, match=r"b\.hdf5.*not a data file of hpcopt"):
        open_dataset(str(path))
    for change, message in (
        (lambda file: file.attrs.update(schema_version=3), "schema version 3"),
        (lambda file: file.pop("train/y"), "damaged"),
        (lambda file: file.attrs.pop("mean"), "damaged"),
        (lambda file: file["train/y"].write_direct(np.full(1000, 9, np.uint8)), "classes"),
    ):
        write_h5(path)
        with h5py.File(path, "a") as file:
            change(file)
        with pytest.raises(UserError, match=rf"b\.hdf5.*{message}"):
            open_dataset(str(path))


def test_moments_keep_their_digits():
    rng = np.random.default_rng(0)
    x = 1e8 + rng.standard_normal(10_000)
    moments = Moments()
    for part in np.split(x, [1, 10, 5000]):
        moments.update(part)
    assert np.isclose(moments.std, x.std(), rtol=1e-6)
    assert np.isclose(moments.mean, x.mean(), rtol=1e-14)
    constant = Moments()
    constant.update(np.full(5, 3, np.uint8))
    assert (constant.mean, constant.std) == (3.0, 1.0)
