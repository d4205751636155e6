"""Sparse data: svmlight text against an oracle, its faults by line, bounded memory, reading of rows."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcopt.errors import UserError
from hpcopt.problems.data import array_dataset, open_dataset, sparse, svmlight
from hpcopt.problems.data.importer import describe, import_svmlight
from hpcopt.problems.data.svmlight_faults import first_fault

RNG = np.random.default_rng(0)
GOOD = b"1 1:0.5 3:2\n# all of it\n\n-1 2:1e-3 # a comment with 7:7\n+1\n"


def rows_of(text: bytes) -> list[tuple[float, dict[int, float]]]:
    """The oracle: a line at a time, without NumPy."""
    lines = (line.partition("#")[0].split() for line in text.decode().split("\n"))
    return [
        (float(line[0]), {int(pair.split(":")[0]) - 1: float(pair.split(":")[1]) for pair in line[1:]})
        for line in lines
        if line
    ]


def matrix_of(rows, features: int):
    x = np.zeros((len(rows), features))
    for i, (_, pairs) in enumerate(rows):
        x[i, list(pairs)] = list(pairs.values())
    return x


def text_of(x, y) -> bytes:
    x = scipy.sparse.csr_matrix(x)
    lines = []
    for i in range(x.shape[0]):
        row = x[i]
        pairs = (f"{j + 1}:{v!r}" for j, v in zip(row.indices.tolist(), row.data.tolist(), strict=True))
        lines.append(" ".join([repr(y[i]), *pairs]))
    return "\n".join(lines).encode() + b"\n"


def everything(split):
    return split.read(np.arange(len(split)))


def imported(folder: Path, text: bytes, **options):
    (folder / "a.svm").write_bytes(text)
    (folder / "a.h5").unlink(missing_ok=True)
    import_svmlight(folder / "a.svm", folder / "a.h5", **options)
    return open_dataset(str(folder / "a.h5"))


def fails(tmp_path: Path, match: str, text: bytes, **options) -> None:
    """The import raises one `UserError` and leaves nothing behind."""
    (tmp_path / "bad.svm").write_bytes(text)
    (tmp_path / "out").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=match):
        import_svmlight(tmp_path / "bad.svm", tmp_path / "out/a.h5", **options)
    assert list((tmp_path / "out").iterdir()) == []


def same_rows(x, y, x2, y2) -> bool:
    """Whether rows with their labels are the same but for their order."""
    a, b = (np.column_stack([np.asarray(m), label]) for m, label in ((x, y), (x2, y2)))
    return np.array_equal(a[np.lexsort(a.T)], b[np.lexsort(b.T)])


def random_rows(rows=300, features=40, density=0.1):
    x = scipy.sparse.random(rows, features, density, format="csr", random_state=1, dtype=np.float64)
    return x, RNG.integers(0, 3, rows)


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(-3, 3) | st.floats(-1e9, 1e9),
            st.dictionaries(
                st.integers(1, 300), st.floats(allow_nan=False, allow_infinity=False), max_size=8
            ),
        ),
        min_size=1,
        max_size=20,
    ),
    gaps=st.sampled_from([" ", "\t", "  "]),
    end=st.sampled_from(["\n", "\r\n", " \n\n", " # x 1:1\n"]),
    size=st.sampled_from([1, 7, 100, 1 << 20]),
)
def test_any_rows_are_read_as_they_are(tmp_path_factory, rows, gaps, end, size):
    text = end.join(
        gaps.join([repr(y), *(f"{i}:{pairs[i]!r}" for i in sorted(pairs))]) for y, pairs in rows
    ).encode()
    path = tmp_path_factory.mktemp("a") / "a.svm"
    path.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svmlight, "BLOCK_BYTES", size)
        blocks = list(svmlight.blocks(path))
    labels, lengths, indices, values = (
        np.concatenate([getattr(block, name) for block in blocks])
        for name in ("labels", "lengths", "indices", "values")
    )
    oracle = rows_of(text)
    assert labels.tolist() == [y for y, _ in oracle]
    assert lengths.tolist() == [len(pairs) for _, pairs in oracle]
    assert indices.tolist() == [i for _, pairs in oracle for i in pairs]
    assert values.tolist() == [v for _, pairs in oracle for v in pairs.values()]


@settings(max_examples=300)
@given(st.text("019+-.e:# \n\tnaif", max_size=30).map(str.encode))
def test_fast_and_slow_readers_agree_on_what_is_wrong(text):
    place, fault = first_fault(text, 1000)
    block = svmlight.parsed(text, 1000)
    assert (block is None) == (not fault.startswith("cannot be read"))
    if block is not None:
        assert place == 0
        assert block.labels.tolist() == [y for y, _ in rows_of(text)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_against_scikit_learn(tmp_path, pack):
    load = pytest.importorskip("sklearn.datasets").load_svmlight_file
    x, y = random_rows()
    text = text_of(x, y.tolist())
    (tmp_path / "plain").write_bytes(text)
    ending = {bytes: "", gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[pack]
    source = tmp_path / f"a.svm{ending}"
    source.write_bytes(pack(text))
    import_svmlight(source, tmp_path / "a.h5")
    theirs, labels = load(str(tmp_path / "plain"))
    data = open_dataset(str(tmp_path / "a.h5"))
    assert (data.sparse, data.classes, data.mean, data.std) == (True, 3, 0, 1)
    assert same_rows(everything(data.train).toarray(), data.train.labels, theirs.toarray(), labels)
    assert not np.array_equal(data.train.labels, labels)  # shuffled
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"a.h5", "plain", source.name})


def test_shuffled_always_alike_whatever_the_windows(tmp_path, monkeypatch):
    x, y = random_rows()
    text = text_of(x, y.tolist())
    seen = []
    for window, block in ((1 << 20, 1 << 20), (50, 1 << 20), (1, 300)):
        monkeypatch.setattr("hpcopt.problems.data.shuffle.WINDOW", window)
        monkeypatch.setattr("hpcopt.problems.data.svmlight.BLOCK_BYTES", block)
        data = imported(tmp_path, text, test_fraction=0.2)
        parts = [everything(split) for split in (data.train, data.test)]
        seen.append([*(part.toarray() for part in parts), data.train.labels, data.test.labels])
        assert (len(data.train), len(data.test)) == (240, 60)
        assert all(part.has_canonical_format and part.dtype == np.float64 for part in parts)
    for other in seen[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(seen[0], other, strict=True))
    assert same_rows(np.vstack(seen[0][:2]), np.concatenate(seen[0][2:]), x.toarray(), y)


def test_any_rows_equal_the_dense_ones(tmp_path, monkeypatch):
    x, y = random_rows(2000, 500, 0.05)
    data = imported(tmp_path, text_of(x, y.tolist()))
    whole = everything(data.train).toarray()
    picks = [
        np.arange(100, 900),
        np.array([5]),
        np.array([1999, 0, 1999, 7]),
        np.arange(0, 2000, 3),
        np.array([], int),
        np.sort(RNG.choice(2000, 50, replace=False)),
    ]
    for gap, run in ((64 << 10, 8 << 20), (0, 1 << 10), (1 << 20, 5000)):
        monkeypatch.setattr("hpcopt.problems.data.sparse.GAP_BYTES", gap)
        monkeypatch.setattr("hpcopt.problems.data.sparse.RUN_BYTES", run)
        for rows in picks:
            part = data.train.read(rows)
            assert part.shape == (len(rows), 500)
            assert np.array_equal(part.toarray(), whole[rows])
            part.has_canonical_format = False
            part.sum_duplicates()
            assert np.array_equal(part.toarray(), whole[rows])
    for wrong in ([-1], [2000], [0.5]):
        with pytest.raises(IndexError):
            data.train.read(np.array(wrong))


def test_a_block_of_rows_is_one_read_of_each_array(tmp_path, monkeypatch):
    data = imported(
        tmp_path, text_of(*(part if i == 0 else part.tolist() for i, part in enumerate(random_rows())))
    )
    reads = []

    def into(dataset, start, out):
        reads.append((dataset.name, len(out)))
        whole(dataset, start, out)

    whole = sparse._into
    monkeypatch.setattr(sparse, "_into", into)
    data.train.read(np.arange(30, 60))
    with h5py.File(tmp_path / "a.h5") as file:
        starts = file["train/indptr"][[30, 60]]
    nnz = int(starts[1] - starts[0])
    assert reads == [("/train/data", nnz), ("/train/indices", nnz)]


def test_what_the_file_holds(tmp_path):
    data = imported(tmp_path, GOOD)
    assert (data.train.shape, data.classes, data.train.labels.dtype) == ((3,), None, np.int64)
    assert same_rows(
        everything(data.train).toarray(), data.train.labels, matrix_of(rows_of(GOOD), 3), [1, -1, 1]
    )
    told = json.loads(json.dumps(describe(tmp_path / "a.h5")))
    assert (told["schema_version"], told["features"], told["classes"], told["test"]) == (2, 3, None, None)
    assert told["train"] | {"density": 0} == {
        "rows": 3, "nnz": 3, "density": 0, "dtype": "float64", "label_dtype": "int64",
        "labels": [-1, 1], "counts": {"-1": 1, "1": 2},
    }  # fmt: skip
    assert told["train"]["density"] == pytest.approx(1 / 3)
    assert imported(tmp_path, b"1 1:0.5\n0 2:3\n").train.read(np.arange(2)).dtype == np.float32
    assert imported(tmp_path, b"1 1:1e300\n").train.read(np.arange(1)).dtype == np.float64
    targets = imported(tmp_path, b"0.5 1:1\n2 9:1\n")
    assert (sorted(targets.train.labels), targets.train.labels.dtype) == ([0.5, 2], np.float64)
    wide = imported(tmp_path, b"1 5000000000:1\n")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["train/indices"].dtype == np.int64
    assert everything(wide.train).indices.tolist() == [4999999999]


def test_test_files_and_lengths(tmp_path):
    (tmp_path / "t.svm").write_bytes(b"0 9:1\n1\n")
    data = imported(tmp_path, b"1 1:1\n0 2:1\n", test=tmp_path / "t.svm")
    assert (data.train.shape, data.test.shape, len(data.test), data.classes) == ((9,), (9,), 2, 2)
    assert everything(data.test).toarray().sum() == 1
    assert describe(tmp_path / "a.h5")["source"] == "a.svm, t.svm"
    assert imported(tmp_path, b"1 1:1\n", features=20).train.shape == (20,)
    (tmp_path / "none.svm").write_bytes(b"0\n1\n")
    empty = imported(tmp_path, b"1 1:1\n", test=tmp_path / "none.svm")
    assert everything(empty.test).nnz == 0
    fails(tmp_path, r't\.svm: line 1: index "9": must be 1…5', b"1 5:1", test=tmp_path / "t.svm", features=5)
    fails(
        tmp_path,
        r"test_fraction = 0.5: .* not beside a test file",
        GOOD,
        test=tmp_path / "t.svm",
        test_fraction=0.5,
    )
    fails(tmp_path, "test_fraction = 1.5", GOOD, test_fraction=1.5)
    fails(tmp_path, "leaves no train or no test", GOOD, test_fraction=0.01)
    fails(tmp_path, r"features = 0: must be 1…", GOOD, features=0)
    fails(tmp_path, "No such file", GOOD, test=tmp_path / "absent.svm")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("spam 1:1", 'label "spam": must be a number'),
        ("1:1 2:1", 'label "1:1": must be a number'),
        ("nan 1:1", 'label "nan": must be finite'),
        ("1e999 1:1", 'label "1e999": must be finite'),
        ("1 1:nan", 'value "nan" of index "1": must be finite'),
        ("1 1:1 2:-inf", 'value "-inf" of index "2": must be finite'),
        ("1 1:1 2:1e999", 'value "1e999" of index "2": must be finite'),
        ("1 0:1", 'index "0": must be 1….*the first feature has index 1'),
        ("1 3:1 2:1", 'index "2": comes after 3; indices must ascend'),
        ("1 2:1 2:1", 'index "2": stands twice'),
        ("1 2", '"2": must be index:value'),
        ("1 2:", '"2:": must be index:value'),
        ("1 2: 3", '"2:": must be index:value'),
        ("1 :3", '":3": must be index:value'),
        ("1 2:3:4", 'value "3:4" of index "2": must be a number'),
        ("1 2:3-4", 'value "3-4"'),
        ("1 2:0x10", 'value "0x10"'),
        ("1 2:1_0", 'value "1_0"'),
        ("1 1.5:3", 'index "1.5": must be a whole number'),
        ("1 -2:3", 'index "-2": must be a whole number'),
        ("1 1e1:3", 'index "1e1": must be a whole number'),
        ("1 99999999999999999999:3", 'index "9+": must be 1…'),
        ("1 qid:3 1:1", '"qid:3": rows in groups'),
        ("1 a:3", 'index "a": must be a whole number'),
        ("1 1:\x00", "value"),
        ("1 1:é", "value"),
    ],
)
def test_a_broken_line_is_named(tmp_path, monkeypatch, line, match):
    for size in (1 << 20, 5):
        monkeypatch.setattr("hpcopt.problems.data.svmlight.BLOCK_BYTES", size)
        fails(tmp_path, rf"bad\.svm: line 6: {match}", GOOD + line.encode() + b"\n1 1:1\n0 0:0\n")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "holds no rows"),
        (b"\n# nothing\n", "holds no rows"),
        (b"1\n2\n", "holds labels, but not one index:value"),
    ],
)
def test_nothing_to_import(tmp_path, text, match):
    fails(tmp_path, rf"bad\.svm: {match}", text)


def test_damaged_and_endless_sources(tmp_path, monkeypatch):
    whole = gzip.compress(text_of(random_rows()[0], [1] * 300))
    for ending, data in (
        (".gz", whole[:-100]),
        (".gz", b"1 1:1\n"),
        (".xz", b"1 1:1\n"),
        (".bz2", b"1 1:1\n"),
    ):
        (tmp_path / f"a{ending}").write_bytes(data)
        with pytest.raises(UserError, match=rf"a\{ending}: (the file is damaged|cannot be read)"):
            import_svmlight(tmp_path / f"a{ending}", tmp_path / "a.h5")
        (tmp_path / f"a{ending}").unlink()
    monkeypatch.setattr("hpcopt.problems.data.svmlight.LINE_BYTES", 1000)
    monkeypatch.setattr("hpcopt.problems.data.svmlight.BLOCK_BYTES", 100)
    fails(tmp_path, r"bad\.svm: line 2: is longer than", b"1 1:1\n" + bytes(5000))


def test_an_interruption_or_a_change_leaves_nothing(tmp_path, monkeypatch):
    x, y = random_rows()
    text = text_of(x, y.tolist())
    (tmp_path / "a.svm").write_bytes(text)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    def cut(done: int, total: int) -> None:
        os.truncate(tmp_path / "a.svm", len(text) // 2)

    monkeypatch.setattr("hpcopt.problems.data.svmlight.BLOCK_BYTES", 1000)
    with pytest.raises(KeyboardInterrupt):
        import_svmlight(tmp_path / "a.svm", tmp_path / "a.h5", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["a.svm"]
    with pytest.raises(UserError, match=r"a\.svm: (changed|line \d+)"):
        import_svmlight(tmp_path / "a.svm", tmp_path / "a.h5", progress=cut)
    assert [path.name for path in tmp_path.iterdir()] == ["a.svm"]


def test_memory_stays_bounded(tmp_path):
    """12 million numbers, 144 MB of file, in 100 MB beyond what Python's imports take."""
    line = "1 " + " ".join(f"{i}:.1" for i in range(1, 401))
    (tmp_path / "a.svm").write_text(f"{line}\n" * 30_000)
    code = """
import resource, sys, pathlib, h5py
from hpcopt.problems.data.importer import import_svmlight
size = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) << 10
limit = size() + (100 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
import_svmlight(*map(pathlib.Path, sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.svm"), str(tmp_path / "a.h5")]
    subprocess.run(command, check=True)
    told = describe(tmp_path / "a.h5")
    assert (told["train"]["rows"], told["train"]["nnz"]) == (30_000, 12_000_000)
    assert told["bytes"] > 137 << 20


def test_damage_is_an_error(tmp_path):
    x, y = random_rows(3000, 100, 0.3)
    imported(tmp_path, text_of(x, y.tolist()))
    whole = (tmp_path / "a.h5").read_bytes()
    with h5py.File(tmp_path / "a.h5") as file:
        place = file["train/data"].id.get_chunk_info(1).byte_offset + 100
    flipped = bytearray(whole)
    flipped[place] ^= 4
    (tmp_path / "a.h5").write_bytes(flipped)
    data = open_dataset(str(tmp_path / "a.h5"))
    data.train.read(np.arange(100))
    with pytest.raises(UserError, match=r"a\.h5.*damaged"):
        everything(data.train)
    for change, match in (
        (lambda file: file["train"].pop("indices"), "damaged"),
        (lambda file: file.attrs.update(features=0), "do not fit together"),
        (lambda file: file.attrs.update(classes=1), "does not hold the classes 0…0"),
        (lambda file: file["train/indptr"].write_direct(np.zeros(3001, np.int64)), "do not fit together"),
    ):
        (tmp_path / "a.h5").write_bytes(whole)
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            change(file)
        with pytest.raises(UserError, match=match):
            open_dataset(str(tmp_path / "a.h5"))


def test_sparse_arrays_in_memory():
    x, y = random_rows()
    data = array_dataset((x, y), (x.tocoo(), y))
    assert (data.sparse, data.train.shape, len(data.train), data.classes) == (True, (40,), 300, 3)
    rows = np.array([5, 3, 5])
    assert np.array_equal(data.train.read(rows).toarray(), x.toarray()[rows])
    assert np.array_equal(everything(data.test).toarray(), x.toarray())
    doubled = scipy.sparse.csr_matrix((np.array([1, 2]), np.array([3, 3]), np.array([0, 2])), shape=(1, 5))
    assert everything(array_dataset((doubled, [1])).train).toarray().tolist() == [[0, 0, 0, 3, 0]]
    assert doubled.nnz == 2  # the caller's own stays as it is
    assert not array_dataset((x.toarray(), y)).sparse
    for train, test, match in (
        ((x, y), (x.toarray(), y), "both be sparse"),
        ((x, y), (x[:, :3], y), "one row of test"),
        ((x, y[:5]), None, "equally many rows"),
        ((x, np.zeros((300, 2))), None, "one number a row"),
        ((x.astype(complex), y), None, "must hold numbers"),
    ):
        with pytest.raises(UserError, match=match):
            array_dataset(train, test)


def test_networks_need_dense_rows(tmp_path):
    import torch

    import hpcopt
    from hpcopt.config.problems import NetworkTable

    x, y = random_rows()
    imported(tmp_path, text_of(x, y.tolist()))
    with pytest.raises(
        UserError, match=r'a\.h5": its rows are sparse, but kind = "network" needs dense ones'
    ):
        NetworkTable(workers=2, dataset=str(tmp_path / "a.h5")).recipe()
    with pytest.raises(UserError, match="train: its rows are sparse"):
        hpcopt.Network(torch.nn.Linear(40, 3), torch.nn.functional.cross_entropy, (x, y), workers=2)


def test_the_command(tmp_path, command):
    (tmp_path / "a.svm").write_bytes(GOOD)

    def run(*options):
        return command("data", "import", "a.svm", "a.h5", *options)

    code, out, err = run("--format", "svmlight", "--test-fraction", "0.3", "--features", "7")
    assert code == 0, err
    assert "features: 7" in out
    assert "'rows': 2, 'nnz'" in out
    (tmp_path / "a.h5").unlink()
    wrong = run("--format", "idx", "--test", "a.svm")
    assert wrong == (2, "", "hpcopt: error: --test is not for --format idx\n")
    assert "allowed are idx, npz and svmlight" in run("--format", "csv")[2]
    assert not (tmp_path / "a.h5").exists()
