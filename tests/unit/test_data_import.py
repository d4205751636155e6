"""The import: round trips, bounded memory, and one clear error and no file when something is wrong."""

import gzip
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from numpy.lib import format as npy

from hpcopt.errors import UserError
from hpcopt.problems.data import open_dataset
from hpcopt.problems.data.importer import describe, import_idx, import_npz
from tests.unit.test_data_sources import FASHION, idx_bytes, needs_fashion

RNG = np.random.default_rng(0)


def everything(split):
    return split.read(np.arange(len(split)))


def fails(tmp_path: Path, match: str, importer, source: Path, **options) -> None:
    """The import raises one `UserError` and leaves nothing behind."""
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=match):
        importer(source, folder / "a.h5", **options)
    assert list(folder.iterdir()) == []


@needs_fashion
def test_fashion_mnist_round_trip(tmp_path, monkeypatch):
    monkeypatch.delenv("HPCOPT_DATA", raising=False)
    seen = []
    import_idx(FASHION, tmp_path / "f.h5", progress=lambda done, total: seen.append((done, total)))
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]
    assert seen[-1] == (70000, 70000)
    assert seen == sorted(seen)
    ours, theirs = open_dataset(str(tmp_path / "f.h5")), open_dataset("fashion-mnist")
    for a, b in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert np.array_equal(everything(a), everything(b))
        assert np.array_equal(a.labels, b.labels)
    assert ours.classes == theirs.classes
    assert np.allclose([ours.mean, ours.std], [theirs.mean, theirs.std], rtol=1e-12)
    told = json.loads(json.dumps(describe(tmp_path / "f.h5")))
    assert (told["train"]["rows"], told["train"]["shape"], told["train"]["dtype"]) == (
        60000,
        [1, 28, 28],
        "uint8",
    )
    assert told["test"]["counts"] == {str(c): 1000 for c in range(10)}
    assert told["source"].startswith("train-images-idx3-ubyte.gz, train-labels")
    assert told["bytes"] > 70000 * 784


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 4, 5)])
def test_idx_of_any_rank_and_type(tmp_path, dtype, shape):
    x = (RNG.standard_normal((23, *shape)) * 50).astype(dtype)
    y = np.arange(23, dtype=np.uint8) % 3
    images = tmp_path / f"my-images-idx{x.ndim}-ubyte.gz"
    images.write_bytes(gzip.compress(idx_bytes(x)))
    (tmp_path / "my-labels-idx1-ubyte").write_bytes(idx_bytes(y))
    import_idx(images, tmp_path / "a.h5")
    data = open_dataset(str(tmp_path / "a.h5"))
    assert data.test is None
    assert np.array_equal(everything(data.train), x[:, None] if len(shape) == 2 else x)
    assert data.train.read(np.array([0])).dtype == np.dtype(dtype)
    assert np.allclose([data.mean, data.std], [x.mean(dtype=float), x.std(dtype=float)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_round_trip(tmp_path, save):
    x = RNG.integers(0, 255, (3001, 8, 9, 3)).astype(np.uint8)  # channels last
    y = RNG.integers(0, 5, (3001, 1))
    save(tmp_path / "a.npz", x_train=x[:2000], y_train=y[:2000], x_test=x[2000:], y_test=y[2000:])
    import_npz(tmp_path / "a.npz", tmp_path / "a.h5")
    data = open_dataset(str(tmp_path / "a.h5"))
    assert (data.train.shape, data.classes, len(data.test)) == ((3, 8, 9), 5, 1001)
    assert np.array_equal(everything(data.train), np.moveaxis(x[:2000], 3, 1))
    assert np.array_equal(everything(data.test), np.moveaxis(x[2000:], 3, 1))
    assert np.array_equal(data.test.labels, y[2000:, 0])
    assert np.allclose([data.mean, data.std], [x[:2000].mean(), x[:2000].std()], rtol=1e-12)


def test_npz_with_targets_and_a_drawn_test_set(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcopt.problems.data.columns.BLOCK_BYTES", 1000)
    x, y = RNG.standard_normal((1000, 5)), RNG.standard_normal((1000, 2)).astype(">f4")
    np.savez(tmp_path / "a.npz", x=x, y=y)
    import_npz(tmp_path / "a.npz", tmp_path / "all.h5")
    import_npz(tmp_path / "a.npz", tmp_path / "cut.h5", test_fraction=0.2)
    every, cut = open_dataset(str(tmp_path / "all.h5")), open_dataset(str(tmp_path / "cut.h5"))
    assert (every.classes, every.test, len(cut.train), len(cut.test)) == (None, None, 800, 200)
    assert np.array_equal(every.train.labels, y)
    assert describe(tmp_path / "all.h5")["train"]["counts"] is None
    rejoined = np.concatenate([everything(cut.train), everything(cut.test)])
    assert np.array_equal(np.sort(rejoined, axis=0), np.sort(x, axis=0))
    place = np.searchsorted(np.sort(x[:, 0]), everything(cut.test)[:, 0])
    assert np.array_equal(cut.test.labels, y[np.argsort(x[:, 0])[place]])  # x and y stay together
    assert np.isclose(cut.mean, everything(cut.train).mean())


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_memory_stays_bounded(tmp_path, compression):
    rows, width = 100_000, 1000  # 100 MB
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression, compresslevel=1) as archive:
        for name, dtype, shape in (("x", "|u1", (rows, width)), ("y", "|u1", (rows,))):
            with archive.open(f"{name}.npy", "w") as member:
                npy.write_array_header_1_0(member, {"descr": dtype, "fortran_order": False, "shape": shape})
                for _ in range(100):
                    member.write(bytes(int(np.prod(shape)) // 100))
    code = """
import sys, pathlib, h5py
from hpcopt.problems.data.importer import import_npz
peak = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
before = peak()
import_npz(*map(pathlib.Path, sys.argv[1:]))
print(peak() - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.npz"), str(tmp_path / "a.h5")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 60_000  # kB
    assert (tmp_path / "a.h5").stat().st_size > 100e6


def test_a_disk_that_fills_is_one_error_and_no_file(tmp_path):
    """On real small file systems, full at the spare file, in the middle, near the end, and not at all."""
    np.savez(tmp_path / "a.npz", x=RNG.standard_normal((5000, 100)), y=np.zeros(5000, int))
    code = """
import os, pathlib, shutil, sys, types
from hpcopt.errors import UserError
from hpcopt.problems.data.importer import import_npz
shutil.disk_usage = lambda path: types.SimpleNamespace(free=10**12)  # as quotas do not show there
for out in map(pathlib.Path, sys.argv[2:]):
    try:
        import_npz(pathlib.Path(sys.argv[1]), out / "a.h5")
    except UserError as error:
        print(error, os.listdir(out))
    else:
        print(os.listdir(out))
"""
    sizes = (1, 9, 10, 11)  # MiB
    disks = [tmp_path / str(size) for size in sizes]
    mounts = [
        f'mount -t tmpfs -o size={size}m none "{disk}"' for size, disk in zip(sizes, disks, strict=True)
    ]
    for disk in disks:
        disk.mkdir()
    here = ["unshare", "-rm", "sh", "-c", f'{" && ".join(mounts)} && exec "$@"', "sh"]
    if subprocess.run([*here, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    command = [*here, sys.executable, "-c", code, tmp_path / "a.npz", *disks]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    full = [f"{disk}/a.h5: cannot be written (No space left on device) []" for disk in disks[:3]]
    assert ended.stdout.splitlines() == [*full, "['a.h5']"]


def test_too_little_space_is_seen_before_writing(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    fails(
        tmp_path,
        r"a\.h5: cannot be written, it needs \d+ bytes, but only 1000 are free",
        import_npz,
        tmp_path / "a.npz",
    )


def test_nothing_is_overwritten_and_bad_places_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    (tmp_path / "taken.h5").write_text("mine")
    with pytest.raises(UserError, match=r"taken\.h5: exists already"):
        import_npz(tmp_path / "a.npz", tmp_path / "taken.h5")
    assert (tmp_path / "taken.h5").read_text() == "mine"

    def taken_meanwhile(done: int, total: int) -> None:
        (tmp_path / "race.h5").write_text("mine")

    with pytest.raises(UserError, match=r"race\.h5: exists already"):
        import_npz(tmp_path / "a.npz", tmp_path / "race.h5", progress=taken_meanwhile)
    assert (tmp_path / "race.h5").read_text() == "mine"
    for out, match in (
        ("taken.h5/b.h5", "not a directory"),
        ("no/b.h5", "not a directory"),
        ("b.txt", r"\.hdf5"),
    ):
        with pytest.raises(UserError, match=match):
            import_npz(tmp_path / "a.npz", tmp_path / out)
    with pytest.raises(UserError, match="cannot be written"):
        import_npz(tmp_path / "a.npz", Path("/proc/b.h5"))  # a directory where even root cannot write
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "race.h5", "taken.h5"]


def test_an_interruption_leaves_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(3))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_npz(tmp_path / "a.npz", tmp_path / "a.h5", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("kept", [0, 3, 12, 0.3, 0.9, -9, -1])
def test_truncated_sources(tmp_path, kept):
    x, y = RNG.integers(0, 255, (500, 6, 6)).astype(np.uint8), np.zeros(500, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=y)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(x)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(y))
    for name, importer, source in (
        ("train-images-idx3-ubyte.gz", import_idx, tmp_path),
        ("train-labels-idx1-ubyte", import_idx, tmp_path),
        ("a.npz", import_npz, tmp_path / "a.npz"),
    ):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
        fails(tmp_path, name, importer, source)
        path.write_bytes(whole)


def test_idx_directories_that_do_not_fit(tmp_path):
    fails(tmp_path, "holds no train-images", import_idx, tmp_path)
    fails(tmp_path, "not a directory and not a file", import_idx, tmp_path / "absent-images-idx3-ubyte")
    images = tmp_path / "train-images-idx3-ubyte"
    images.write_bytes(idx_bytes(np.zeros((5, 2, 2), np.uint8)))
    fails(tmp_path, "labels are missing beside train-images", import_idx, tmp_path)
    fails(tmp_path, "no labels file train-labels", import_idx, images)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    fails(tmp_path, r"train-labels-idx1-ubyte: has shape \(4,\).* has 5 rows", import_idx, tmp_path)
    labels.write_bytes(idx_bytes(np.zeros(5, np.uint8)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((2, 2, 3), np.uint8)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(2, np.uint8)))
    fails(tmp_path, "t10k-images.* do not look like the training rows", import_idx, tmp_path)


class Trap:
    """Unpickling this would write a file."""

    def __reduce__(self):
        return (Path("/tmp/hpcopt-trap").touch, ())


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"a": np.zeros(3)}, "needs x_train and y_train.* holds a"),
        ({"x_train": np.zeros((3, 2)), "y_train": np.zeros(3), "x_test": np.zeros((3, 2))}, "both x_test"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, r"has shape \(4,\)"),
        ({"x": np.zeros(3), "y": np.zeros(3)}, "rows of at least one number"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "rows of at least one number"),
        ({"x": np.asfortranarray(np.zeros((3, 2))), "y": np.zeros(3)}, "ascontiguousarray"),
        ({"x": np.zeros((3, 2)), "y": np.array(["a", "b", "c"])}, "y: holds <U1"),
        ({"x": np.zeros((3, 2), complex), "y": np.zeros(3)}, "x: holds complex128"),
        ({"x": np.array([[Trap()]]), "y": np.zeros(1)}, "x: holds Python objects"),
        ({"x": np.array([[1.0], [np.nan]]), "y": np.zeros(2)}, "x holds numbers that are not finite"),
    ],
)
def test_npz_that_do_not_fit(tmp_path, arrays, match):
    np.savez(tmp_path / "a.npz", **arrays)
    fails(tmp_path, rf"a\.npz.*{match}", import_npz, tmp_path / "a.npz")
    assert not Path("/tmp/hpcopt-trap").exists()


def test_npz_that_are_something_else(tmp_path):
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap()))
    fails(tmp_path, "not a zip", import_npz, tmp_path / "a.npz")
    fails(tmp_path, "No such file", import_npz, tmp_path / "b.npz")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("x.npy", "not an array")
        archive.writestr("y.npy", "")
    fails(tmp_path, r"c\.npz: x: the file is damaged", import_npz, tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    fails(tmp_path, "test_fraction = 1.5", import_npz, tmp_path / "d.npz", test_fraction=1.5)
    fails(tmp_path, "no train or no test", import_npz, tmp_path / "d.npz", test_fraction=0.01)


def test_a_flipped_bit_in_the_file_is_an_error(tmp_path):
    x = RNG.integers(0, 255, (5000, 100)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.zeros(5000, int))
    import_npz(tmp_path / "a.npz", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        place = file["train/x"].id.get_chunk_info(3).byte_offset + 1000
    whole = bytearray((tmp_path / "a.h5").read_bytes())
    whole[place] ^= 4
    (tmp_path / "a.h5").write_bytes(whole)
    data = open_dataset(str(tmp_path / "a.h5"))
    assert np.array_equal(data.train.read(np.arange(100)), x[:100])
    with pytest.raises(UserError, match=r"a\.h5.*damaged"):
        everything(data.train)
