"""`hpcopt report` and `hpcopt export --tensorboard` as commands."""

from datetime import datetime

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from hpcopt.report.runs import find
from hpcopt.report.tables import for_report
from hpcopt.report.terminal import write
from tests.report import made_up


@pytest.fixture
def hpcopt(command):
    """Runs a command: its exit code and what it prints."""
    return command


def test_what_can_be_read_is_shown_and_what_cannot_is_named(hpcopt, tmp_path):
    run = made_up.run(tmp_path / "good")
    code, out, _ = hpcopt("report", run, tmp_path / "bad")
    assert code == 0
    assert f"{run.resolve()}" in out
    assert "no such file" in out
    code, out, err = hpcopt("report", tmp_path / "bad", tmp_path)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"hpcopt: error: {tmp_path / 'bad'}: no such file or directory",
        f"{tmp_path}: holds no run, sweep or study",
    ]


def test_text_from_outside_is_neither_markup_nor_an_order_to_the_terminal(tmp_path, capsys):
    evil = "[bold red]x[/] \x1b[2J\x9b31m \u202eabc\nd"
    run = made_up.run(tmp_path / "n[blink]\x1b]0;t\x07", settings={"kind": evil}, about={"commit": evil})
    found = find([run, made_up.run(tmp_path / "other"), tmp_path / "\x1b[1m"])
    for width in (60, 300):
        write(for_report(found), Console(force_terminal=True, color_system=None, width=width))
        out = capsys.readouterr().out
        assert not set(out) & set("\x1b\x07\x9b\u202e")
        assert "n[blink]" in out
        assert "[bold" in out.replace("\n", "")
    assert r"[bold red]x[/] \x1b[2J\x9b31m \u202eabc\nd" in out
    write(for_report(found))
    assert r"[bold red]x[/] \x1b[2J\x9b31m \u202eabc\nd" in capsys.readouterr().out


def events(directory):
    """The events in a directory's only file, by TensorFlow's record format."""
    (path,) = directory.iterdir()
    data, at = path.read_bytes(), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        content = data[at + 12 : at + 12 + length]
        assert int.from_bytes(data[at + 12 + length : at + 16 + length], "little") == masked_crc32c(content)
        yield Event.FromString(content)
        at += 16 + length


def test_tensorboard(hpcopt, tmp_path):
    def gaps(columns):
        columns["metrics/loss"][3] = np.nan
        columns["workers/loss"][2, 1] = np.nan

    run = made_up.run(tmp_path / "run", change=gaps)
    code, out, _ = hpcopt("export", run, "--tensorboard", tmp_path / "events")
    assert (code, out) == (0, f"{tmp_path / 'events'}: 11 records\n")
    found = {}
    for event in events(tmp_path / "events"):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = (value.simple_value, event.wall_time)
    tree = find([run]).runs[0].tree
    losses = tree["metrics/loss"].values
    begun = datetime.fromisoformat("2026-11-27T10:00:00+00:00").timestamp()
    assert list(found["metrics/loss"]) == [0, 10, 20, 40, 50, 60, 70, 80, 90, 100]
    for step, (value, time) in found["metrics/loss"].items():
        assert value == np.float32(losses[step // 10])
        assert time == pytest.approx(begun + step * 0.01, abs=1e-4)
    rows = tree["workers/loss"].values
    for name, expected in (("min", np.nanmin), ("median", np.nanmedian), ("max", np.nanmax)):
        assert found[f"workers/loss/{name}"][20][0] == np.float32(expected(rows[2]))
    assert "metrics/round" not in found


def test_events_are_not_mixed_and_something_has_to_be_asked_for(hpcopt, tmp_path):
    run = made_up.run(tmp_path / "run", records=1)
    assert hpcopt("export", run, "--tensorboard", tmp_path / "events")[0] == 0
    code, _, err = hpcopt("export", run, "--tensorboard", tmp_path / "events")
    assert code == 2
    assert "already holds events" in err
    code, _, err = hpcopt("export", run)
    assert code == 2
    assert "--tensorboard DIR" in err
