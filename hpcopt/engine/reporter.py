"""What the user sees while a job runs: a bar on a terminal, lines in a log file, events in log.jsonl."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hpcopt.ground.stamps import now
from hpcopt.ground.terminal import forgiving, is_terminal, printable, tell

LINE_SECONDS = 10.0
SHOWN = ("loss", "test_loss", "accuracy", "gap", "distance")


class Reporter:
    """Tells about one job; on all ranks but 0 it does nothing.

    ``HPCOPT_PROGRESS=bar|lines|off`` overrides what stderr looks like (mpirun passes it on through a pipe);
    "off" leaves nothing but errors, and log.jsonl.

    Args:
        directory: where log.jsonl is; None: nowhere.
        rounds: the last round.
        active: whether this is rank 0.
    """

    def __init__(self, directory: Path | None, rounds: int, active: bool) -> None:
        self._directory, self._rounds, self._active = directory, rounds, active
        self._style = os.environ.get("HPCOPT_PROGRESS", "bar" if is_terminal(sys.stderr) else "lines")
        self._told = 0.0
        self._bar: Progress | None = None

    def start(self, job: dict[str, Any]) -> None:
        """The loop begins."""
        self.event("start", **job)
        if self._active and self._style == "bar":
            columns = (
                TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TextColumn("{task.description}", markup=False),
                TimeRemainingColumn(),
            )
            console = Console(file=forgiving(sys.stderr), force_terminal=True)
            self._bar = Progress(*columns, console=console, refresh_per_second=4)
            self._task = self._bar.add_task("", total=self._rounds)
            self._bar.start()

    def event(self, name: str, **values: Any) -> None:
        """One line in log.jsonl, forced out at once."""
        if self._active and self._directory is not None:
            line = json.dumps({"time": now(), "event": name, **values}) + "\n"
            # no job ends for want of a log line; what has to be written says so itself
            with suppress(OSError), open(self._directory / "log.jsonl", "ab", opener=_no_link) as log:
                log.write(line.encode())

    def say(self, text: str) -> None:
        """One line to the user, at once, and to log.jsonl."""
        if self._active:
            self.event("message", text=text)
            self._print(f"hpcopt: {text}")

    def round(self, number: int) -> None:
        """A round is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=number)

    def record(self, record: dict[str, Any]) -> None:
        """A record was made."""
        if not self._active:
            return
        values = {
            name.removeprefix("metrics/"): float(value)
            for name, value in record.items()
            if name.startswith("metrics/")
        }
        # JSON has no NaN or infinity
        self.event("record", **{k: v if abs(v) < float("inf") else str(v) for k, v in values.items()})
        latest = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        if self._bar is not None:
            self._bar.update(self._task, description=latest, completed=values["round"])
        elif time.monotonic() - self._told > LINE_SECONDS or values["round"] in (0, self._rounds):
            self._told = time.monotonic()
            line = f"round {values['round']:.0f}/{self._rounds}  {values['seconds']:.1f} s  {latest}"
            self._print(f"hpcopt: {line}")

    def summary(self, record: dict[str, Any], path: Path) -> None:
        """The last record as a table, and where the rest is."""
        if not self._active:
            return
        self.close()
        if self._style == "off":
            return
        table = Table("metric", "value", title="last record", title_justify="left")
        for name, value in record.items():
            if name.startswith("metrics/"):
                table.add_row(Text(printable(name.removeprefix("metrics/"))), f"{value:.6g}")
        # Open MPI shows the ranks a terminal even where its own output goes to a file
        console = Console(file=forgiving(sys.stdout), force_terminal=False)
        console.print(table)
        console.print(Text(printable(f"results: {path}")), soft_wrap=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(Text(printable(line, "\n")), soft_wrap=True)
        elif self._style != "off":
            tell(line)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
