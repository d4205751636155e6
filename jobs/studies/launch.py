"""Runs a study's cases as sweeps: `hpcopt sweep`, one for each config and number of ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
GRACE = 90.0
"""seconds that runs have for their checkpoints when they are stopped"""


@dataclass(frozen=True)
class Case:
    """One run of a study.

    Attributes:
        name: unique in the study.
        config: the TOML file.
        settings: "table.key" -> value, changes of the config.
        ranks: of the run.
    """

    name: str
    config: Path
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    ranks: int = 1

    @property
    def overrides(self) -> list[str]:
        """The settings as `hpcopt run --set` takes them; JSON's numbers, strings and booleans are TOML's."""
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in self.settings.items()]

    @property
    def sweep(self) -> str:
        """The directory of its sweep, below the study's."""
        return self.config.stem + (f"-{self.ranks}ranks" if self.ranks > 1 else "")

    @property
    def label(self) -> str:
        """Its name in the sweep."""
        return re.sub(r"[^A-Za-z0-9_.+,=-]+", "-", self.name)

    @property
    def path(self) -> Path:
        """The run's directory, below the study's."""
        return Path(self.sweep) / "cases" / self.label


def work(directory: Path, cases: Sequence[Case]) -> None:
    """Runs cases, or goes on with them, as many at once as there are cores for their ranks.

    Args:
        directory: of the study.
        cases: those that are not finished.

    Raises:
        SystemExit: stopped by Ctrl-C or TERM; the runs have written checkpoints.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    for sweep in dict.fromkeys(case.sweep for case in cases):
        mine = [case for case in cases if case.sweep == sweep]
        _launch(directory / sweep, mine)


def _launch(out: Path, cases: Sequence[Case]) -> None:
    """One sweep, whose list of cases grows by those that are new."""
    import tomli_w

    out.mkdir(parents=True, exist_ok=True)
    file, ranks = out / "cases.toml", cases[0].ranks
    listed = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for case in cases:
        tables: dict[str, dict[str, Any]] = {}
        listed[case.label] = tables
        for key, value in case.settings.items():
            table, _, name = key.partition(".")
            tables.setdefault(table, {})[name] = value
        (out / "failed" / f"{case.label}.json").unlink(missing_ok=True)  # to be tried again
    file.write_text(tomli_w.dumps(listed), encoding="utf-8")
    at_once = max(1, (os.cpu_count() or 1) // ranks)
    command = ["mpirun", "-n", str(at_once * ranks), "hpcopt", "sweep", str(cases[0].config)]
    command += ["--cases", str(file), "--ranks-each", str(ranks), "--out", str(out)]
    # in a session of its own, so that Ctrl-C does not reach its ranks before this process
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        process.wait()
    except KeyboardInterrupt:
        _stop(process)
        sys.exit("stopped; the same command goes on from here")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks for checkpoints and an end; after a while it has to."""
    for what, seconds in ((signal.SIGUSR1, GRACE), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        process.send_signal(what)
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
