"""Partitions: exact cover, sizes, label proportions, determinism, and errors that name the key."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcopt.errors import UserError
from hpcopt.problems.data import partition

LABELS = np.repeat(np.arange(10), 600)
TEST = np.tile(np.arange(10), 100)
OPTIONS = {"alpha": 0.5, "classes_per_worker": 2, "samples_per_worker": None, "seed": 3}


def split(kind, workers=16, labels=LABELS, test=TEST, **options):
    return partition(labels, test, workers, kind=kind, **(OPTIONS | options))


def sizes(parts):
    return np.array([len(part) for part in parts])


def histogram(parts, labels, classes=10):
    return np.array([np.bincount(labels[part], minlength=classes) for part in parts])


def covers(parts, rows):
    return np.array_equal(np.sort(np.concatenate(parts)), np.arange(rows))


@settings(max_examples=150)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    test=st.none() | st.lists(st.integers(0, 5), max_size=15),
    workers=st.integers(1, 12),
    kind=st.sampled_from(["iid", "dirichlet", "classes", "unequal", "blocks"]),
    alpha=st.sampled_from([1e-300, 1e-8, 0.01, 0.5, 10.0, 1e300]),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_every_row_goes_to_one_worker(labels, test, workers, kind, alpha, seed, data):
    labels = np.array(labels)
    test = None if test is None else np.array(test, int)
    workers = min(workers, len(labels))
    classes = len(np.unique(labels))
    k = data.draw(st.integers(1, classes))
    options = {
        "kind": kind,
        "alpha": alpha,
        "classes_per_worker": k,
        "samples_per_worker": None,
        "seed": seed,
    }
    parts = partition(labels, test, workers, **options)
    again = partition(labels, test, workers, **options)
    assert len(parts.train) == workers
    assert sizes(parts.train).min() >= 1
    assert all(np.array_equal(a, b) for a, b in zip(parts.train, again.train, strict=True))
    everywhere = np.concatenate(parts.train)
    assert len(np.unique(everywhere)) == len(everywhere)
    if kind != "classes" or workers * k >= classes:
        assert covers(parts.train, len(labels))
    if kind == "classes":
        assert max(len(np.unique(labels[part])) for part in parts.train) <= k
    if test is None:
        assert parts.test is None
    elif kind != "classes" or workers * k >= classes:
        assert covers(parts.test, len(test))
    n = data.draw(st.integers(1, len(labels) if kind == "dirichlet" else sizes(parts.train).min()))
    if kind != "unequal" or n <= len(labels) // workers:
        drawn = partition(labels, test, workers, **(options | {"samples_per_worker": n}))
        assert sizes(drawn.train).tolist() == [n] * workers
        assert all(len(np.unique(part)) == n for part in drawn.train)


def test_iid_is_even():
    parts = split("iid", workers=7)
    assert set(sizes(parts.train)) == {857, 858}
    assert set(sizes(parts.test)) == {142, 143}
    assert np.abs(histogram(parts.train, LABELS) - 85.7).max() < 40
    few = split("iid", workers=7, samples_per_worker=50)
    assert sizes(few.train).tolist() == [50] * 7
    assert len(np.unique(np.concatenate(few.train))) == 350


def test_blocks_are_contiguous():
    parts = split("blocks", workers=7)
    assert np.array_equal(np.concatenate(parts.train), np.arange(6000))
    assert np.array_equal(np.concatenate(parts.test), np.arange(1000))
    assert sizes(parts.train).tolist() == [858] + [857] * 6
    assert sizes(parts.test).tolist() == [143] * 6 + [142]
    few = split("blocks", workers=7, samples_per_worker=50)
    assert [part.tolist() for part in few.train] == [part[:50].tolist() for part in parts.train]
    assert sizes(few.test).tolist() == sizes(parts.test).tolist()
    targets = partition(np.zeros((9, 2)), None, 4, kind="blocks", seed=1)
    assert (sizes(targets.train).tolist(), targets.test) == ([3, 2, 2, 2], None)
    with pytest.raises(UserError, match=r"samples_per_worker = 858: must be 1…857"):
        split("blocks", workers=7, samples_per_worker=858)


def test_dirichlet_test_rows_follow_training_rows():
    parts = split("dirichlet", alpha=0.1)
    train, test = histogram(parts.train, LABELS), histogram(parts.test, TEST)
    assert np.abs(test - train * 100 / 600).max() < 1
    top = np.sort(train / train.sum(1, keepdims=True), axis=1)[:, -2:].sum(1)
    assert np.mean(top) > 0.7  # few classes make up a worker
    even = histogram(split("dirichlet", alpha=1e6).train, LABELS)
    assert np.abs(even - 37.5).max() < 3
    assert not all(
        np.array_equal(a, b)
        for a, b in zip(parts.train, split("dirichlet", alpha=0.1, seed=4).train, strict=True)
    )


def test_dirichlet_without_weight_still_feeds_everyone():
    parts = split("dirichlet", workers=100, alpha=1e-9)
    assert covers(parts.train, 6000)
    assert sizes(parts.train).min() == 1
    assert sizes(parts.train).max() > 500


@pytest.mark.parametrize("workers", [4, 16, 128])
def test_drawn_samples_have_the_drawn_proportions(workers):
    parts = split("dirichlet", workers=workers, alpha=0.3, samples_per_worker=100)
    train, test = histogram(parts.train, LABELS), histogram(parts.test, TEST)
    assert train.sum(1).tolist() == [100] * workers
    assert all(len(np.unique(part)) == 100 for part in parts.train)
    assert test.sum(1).max() <= 1000 // workers
    assert test.sum(1).min() >= min(100, 1000 // workers)
    assert np.abs(test - train / 100 * test.sum(1, keepdims=True)).max() < 1
    more = split("dirichlet", workers=workers + 3, alpha=0.3, samples_per_worker=100)
    assert all(np.array_equal(a, b) for a, b in zip(parts.train, more.train[:workers], strict=True))


def test_a_class_that_runs_out_is_made_up_from_the_others():
    parts = split("dirichlet", alpha=0.01, samples_per_worker=2000)
    train = histogram(parts.train, LABELS)
    assert train.sum(1).tolist() == [2000] * 16
    assert train.max() == 600
    whole = split("dirichlet", workers=2, alpha=0.01, samples_per_worker=6000)
    assert all(covers([part], 6000) for part in whole.train)


@pytest.mark.parametrize(("workers", "k"), [(16, 2), (3, 4), (10, 1), (7, 10)])
def test_classes(workers, k):
    parts = split("classes", workers=workers, classes_per_worker=k)
    train, test = histogram(parts.train, LABELS), histogram(parts.test, TEST)
    assert ((train > 0).sum(1) == k).all()
    assert covers(parts.train, 6000)
    holders = (train > 0).sum(0)
    assert holders.max() - holders.min() <= 1
    assert np.abs(train - np.where(train, 600 / holders, 0)).max() < 1
    assert np.abs(test - np.where(train, 100 / holders, 0)).max() < 1
    few = split("classes", workers=workers, classes_per_worker=k, samples_per_worker=30)
    drawn = histogram(few.train, LABELS)
    assert drawn.sum(1).tolist() == [30] * workers
    assert ((train > 0) | (drawn == 0)).all()


def test_classes_that_nobody_holds_are_left_out():
    parts = split("classes", workers=2, classes_per_worker=2)
    assert sizes(parts.train).tolist() == [1200] * 2
    assert sizes(parts.test).tolist() == [200] * 2


def test_unequal():
    parts = split("unequal", alpha=0.3)
    train, test = sizes(parts.train), sizes(parts.test)
    assert covers(parts.train, 6000)
    assert covers(parts.test, 1000)
    assert train.max() > 4 * np.median(train)
    assert np.abs(test - train / 6).max() < 1


def test_a_thousand_workers_are_lean():
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    for kind in ("iid", "dirichlet", "classes", "unequal"):
        tracemalloc.start()
        parts = split(kind, workers=1024, labels=labels)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(parts.train) == 1024
        assert peak < 10e6


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("dirichlett", {}, 'problem.partition.*did you mean "dirichlet"'),
        ("iid", {"workers": 6001}, "run.workers = 6001: must be 1…6000"),
        ("iid", {"workers": 0}, "run.workers = 0"),
        ("dirichlet", {"alpha": 0.0}, "problem.alpha = 0.0"),
        ("classes", {"classes_per_worker": 11}, "problem.classes_per_worker = 11: must be 1…10"),
        ("iid", {"samples_per_worker": 376}, "problem.samples_per_worker = 376: must be 1…375"),
        ("dirichlet", {"samples_per_worker": 6001}, "must be 1…6000"),
        ("classes", {"samples_per_worker": 374, "workers": 16}, "the rows of the worker with the fewest"),
        ("dirichlet", {"labels": LABELS + 0.5}, 'problem.partition = "dirichlet" needs class labels'),
        ("classes", {"test": TEST[:, None]}, 'problem.partition = "classes" needs class labels'),
    ],
)
def test_errors_name_the_key(kind, options, match):
    with pytest.raises(UserError, match=match):
        split(kind, **options)


def test_targets_that_are_numbers_can_be_split_by_rows():
    assert covers(split("iid", labels=LABELS + 0.5, test=None).train, 6000)
    assert covers(split("unequal", labels=np.zeros((6000, 3)), test=None).train, 6000)
