"""What is drawn, on runs and studies with known answers."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from hpcopt.report import figures
from hpcopt.report.figures.groups import groups
from hpcopt.report.figures.scaling import shares
from hpcopt.report.runs import Found, find
from hpcopt.report.tables.scaling import points
from tests.report import made_up
from tests.report.made_up_study import study


def drawn(*paths):
    """Name -> figure."""
    return {figure.name: figure for figure in figures.for_report(find(paths))}


def of_study(one):
    """The figure of one study, and its panels' medians: label -> (ranks, values)."""
    (figure,) = figures.for_report(Found([], [one], []))
    panels = {axis.get_ylabel(): axis for axis in figure.sheet.axes}
    return figure, {
        name: next(bars.lines[0].get_xydata().T for bars in axis.containers)
        for name, axis in panels.items()
        if axis.containers
    }


def test_runs_that_differ_in_seeds_are_one_curve_with_a_band(tmp_path):
    runs = [made_up.run(tmp_path / f"r{seed}", seed=seed, records=5 + seed % 2) for seed in range(3)]
    other = made_up.run(tmp_path / "other", settings={"lr": 0.5})
    several, one = groups(find([*runs, other]).runs)
    curve = several.curve("metrics/round", "metrics/loss")
    losses = np.array([run.numbers("metrics/loss")[:5] for run in several.runs])
    assert curve.x.tolist() == [0, 10, 20, 30, 40, 50]
    assert curve.y[:5].tolist() == np.median(losses, axis=0).tolist()
    assert (curve.low[4], curve.high[4]) == (losses[:, 4].min(), losses[:, 4].max())
    assert curve.y[5] == several.runs[1].last("metrics/loss")  # the only one that got there
    assert (
        one.curve("metrics/round", "metrics/loss").y.tolist() == one.runs[0].numbers("metrics/loss").tolist()
    )
    figure = drawn(*runs, other)["loss"]
    assert "one curve: the median of those that got there" in figure.caption
    assert "P = 2 ranks, N = 4 workers; hosts: 2; cores: unknown; repeats: 1, 3." in figure.caption


def test_what_is_not_finite_is_a_gap_marked_and_told(tmp_path):
    def broken(columns):
        columns["metrics/loss"][[4, 6]] = np.nan, np.inf
        columns["metrics/grad_norm"] = np.array([np.nan, *range(10)])  # nothing to measure at first

    found = drawn(made_up.run(tmp_path / "r", change=broken))
    figure = found["loss"]
    assert "r: loss is not finite first in round 40 (×)." in figure.caption
    assert "not finite" not in found["metrics"].caption
    curve, cross = figure.sheet.axes[0].get_lines()
    assert np.flatnonzero(np.isnan(curve.get_ydata())).tolist() == [4, 6]
    assert cross.get_xdata() == [40]


@pytest.mark.parametrize("records", [0, 1, 2])
def test_runs_with_hardly_a_record(tmp_path, records):
    found = drawn(made_up.run(tmp_path / "r", records=records))
    assert ("loss" in found) == (records > 0)
    assert all(figure.svg for figure in found.values())


def test_numbers_that_no_axis_holds_are_no_error(tmp_path):
    def huge(columns):
        columns["metrics/loss"][:] = np.nan
        columns["metrics/accuracy"][:] = [1e308, -1e308, 5e-324, 0, np.inf, -np.inf, np.nan, 1, 2, 3, 4]
        columns["workers/loss"][-1] = [np.inf, np.nan, 1e308, 1]
        columns["phases/seconds_mean"][-1] = np.nan
        columns["metrics/seconds"][:] = 0

    assert all(figure.svg for figure in drawn(made_up.run(tmp_path / "r", change=huge)).values())


def test_arrays_that_methods_keep(tmp_path):
    arrays = {
        "staleness/count": (("delay",), np.array([0, 30, 10])),
        "spectrum/eigenvalue": (("refresh", "pair"), np.array([[1.0, 2.0], [3.0, 5.0]])),
        "spectrum/residual": (("refresh", "pair"), np.full((2, 2), 0.1)),
    }
    found = drawn(made_up.run(tmp_path / "r", arrays=arrays))
    assert list(found) == ["loss", "accuracy", "phases", "staleness", "spectrum", "workers"]
    (stairs,) = found["staleness"].sheet.axes[0].patches
    assert stairs.get_data().values.tolist() == [0, 75, 25]
    bars = found["spectrum"].sheet.axes[0].containers[0]
    assert bars.lines[0].get_ydata().tolist() == [5, 3]


def test_bars_are_the_mean_time_of_the_ranks(tmp_path):
    figure = drawn(made_up.run(tmp_path / "r"))["phases"]
    bars = {bar.get_label(): bar.patches[0].get_width() for bar in figure.sheet.axes[0].containers}
    mean = np.array([0.5, 0.2, 0.3, 0.1, 0.05])  # of the last record, 1 s on the clock
    expected = [0.5, 0.7 * 0.3, 0.3 * 0.3, 0.7 * 0.2, 0.3 * 0.2, 0.1, 0.05]
    assert list(bars.values()) == pytest.approx(expected)
    assert sum(bars.values()) == pytest.approx(mean.sum())
    assert list(bars)[:3] == ["compute", "sparse", "sparse: waiting"]
    assert {"20%", "35%", "15%"} <= {text.get_text() for text in figure.sheet.axes[0].texts}


def test_a_strong_study_by_hand():
    """8 = 2 + 6/P: speed-ups 1, 8/5 and 8/3.5, and a quarter that is serial."""
    figure, medians = of_study(study({1: [7.0, 8.0, 9.0], 2: [4.0, 5.0, 6.0], 4: [3.0, 3.5, 4.0]}))
    ranks, times = medians["time of a round [s]"]
    assert (ranks.tolist(), times.tolist()) == ([1, 2, 4], [8, 5, 3.5])
    assert medians["speed-up"][1].tolist() == [1, 8 / 5, 8 / 3.5]
    assert medians["efficiency"][1].tolist() == [1, 4 / 5, 2 / 3.5]
    assert medians["serial fraction"][1][1:] == pytest.approx([0.25, 0.25])
    assert "P = 1, 2, 4 ranks, N = 8 workers; hosts: 1; cores: 4; repeats: 2." in figure.caption
    assert "too few samples (n = 3: range)" in figure.caption
    assert "more ranks than cores" not in figure.svg


def test_more_ranks_than_cores_and_beyond_ideal_are_marked():
    one = study({1: [8.0] * 6, 2: [3.0] * 6, 8: [2.0] * 6})
    figure, _ = of_study(one)
    assert [row[-1] for row in points([one]).rows] == [None, "beyond ideal", "more ranks than cores"]
    assert "⚠ more ranks than cores" in figure.svg
    assert "Beyond ideal on 2 ranks" in figure.caption
    assert "too few" not in figure.caption


def test_a_weak_study_has_no_serial_fraction():
    figure, medians = of_study(study({1: [2.0], 4: [2.5]}, "weak"))
    assert medians["efficiency"][1].tolist() == [1, 0.8]
    assert medians["speed-up"][1].tolist() == [1, 3.2]
    assert "no serial fraction" in figure.svg


def test_waiting_for_a_slow_rank_is_no_communication():
    even, slow = (shares(study({2: [1.0] * 6}, waiting=part)) for part in (0.0, 0.2))
    for share, before, after in (
        ("communication", 0.25, 0.25),
        ("waiting", 0, 0.2),
        ("imbalance", 0, 0.2 / 0.55),
    ):
        assert (even[share][2].value, slow[share][2].value) == pytest.approx((before, after))


def test_figures_of_one_page_share_no_id_and_names_are_text(tmp_path):
    names = ["$x", "_y", "<b>&", "é\u202e", "z" * 200]
    found = drawn(*(made_up.run(tmp_path / name, settings={"lr": at}) for at, name in enumerate(names)))
    roots = [ElementTree.fromstring(figure.svg) for figure in found.values()]
    known = [element.get("id") for root in roots for element in root.iter() if element.get("id")]
    assert len(known) == len(set(known)) > 100
    values = [value for root in roots for element in root.iter() for value in element.attrib.values()]
    used = {link for value in values for link in re.findall(r"^#([\w-]{8,})$|url\(#(.+?)\)", value)}
    assert len(used) > 10
    assert {"".join(link) for link in used} <= set(known)
    said = " ".join(text for root in roots for text in root.itertext())
    assert all(name in said for name in ("$x", "_y", "<b>&", r"é\u202e", "z…z"))


def test_figures_depend_on_numbers_only(tmp_path, monkeypatch):
    import matplotlib

    run = made_up.run(tmp_path / "r")
    before = {name: figure.svg for name, figure in drawn(run).items()}
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert {name: figure.svg for name, figure in drawn(run).items()} == before
    assert matplotlib.rcParams["font.size"] == 20


def test_png(tmp_path):
    found = find([made_up.run(tmp_path / "r")])
    files = figures.save_png(figures.for_report(found), tmp_path / "a" / "b")
    assert [file.name for file in files] == ["loss.png", "accuracy.png", "phases.png", "workers.png"]
    assert all(
        file.read_bytes().startswith(b"\x89PNG") and b"P = 2 ranks" in file.read_bytes() for file in files
    )
