"""The doctor's table, for people and for the doctor that started this one."""

from __future__ import annotations

import io
import json
import sys

from hpcopt.control.launcher import expected_size
from hpcopt.doctor.finding import Finding, Grade, Row
from hpcopt.ground.terminal import is_terminal, printable

_MARKS = {
    Grade.OK: ("ok", "green"),
    Grade.NOTE: ("note", "cyan"),
    Grade.WARNING: ("warning", "yellow"),
    Grade.FAILS: ("FAILS", "bold red"),
    Grade.HANGS: ("HANGS", "bold red"),
}


def as_table(rows: list[Row]) -> str:
    """A table of check, result and remedy, and a verdict; in a log every check is one line, however long."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # under mpirun stdout is a terminal of its own, of no true width
    terminal = is_terminal(sys.stdout) and expected_size() == 1
    console = Console(
        file=io.StringIO(), force_terminal=terminal, no_color=not terminal, width=None if terminal else 10_000
    )
    table = Table("check", "result", "remedy", title="hpcopt doctor", title_justify="left")
    if "utf" not in (getattr(sys.stdout, "encoding", None) or "").lower():
        table.box = box.ASCII
    for name, finding in rows:
        mark, style = _MARKS[finding.grade]
        result = Text.assemble((mark, style), f" {printable(_line(finding.result))}")
        table.add_row(Text(name), result, Text(printable(_line(finding.remedy))))
    console.print(table)
    console.print(Text(verdict(rows)))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def verdict(rows: list[Row]) -> str:
    """The last line."""
    failed = [row.name for row in rows if row.finding.grade >= Grade.FAILS]
    if failed:
        return f"hpcopt doctor: not fit for a run: {', '.join(failed)}"
    warned = [row.name for row in rows if row.finding.grade is Grade.WARNING]
    return "hpcopt doctor: fit for a run" + (f"; mind {', '.join(warned)}" if warned else "")


def as_json(rows: list[Row]) -> str:
    """One line for a program."""
    plain = [[name, int(f.grade), _line(f.result), _line(f.remedy)] for name, f in rows]
    return json.dumps({"doctor": plain}) + "\n"


def from_json(output: str) -> list[Row] | None:
    """The rows in the output of a doctor that wrote `as_json`; None if there are none."""
    for line in output.splitlines():
        if line.startswith('{"doctor"'):
            return [
                Row(name, Finding(Grade(grade), result, remedy))
                for name, grade, result, remedy in json.loads(line)["doctor"]
            ]
    return None


def _line(text: str) -> str:
    return " ".join(text.split())
