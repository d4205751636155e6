"""What all studies share: cases that are run as MPI jobs, and one tidy table of their records.

A case is a config with some keys changed; its run lives in runs/studies/STUDY/SWEEP/cases/CASE. What is
finished is never run again, what was stopped goes on from its checkpoint, so a study's one command may be
stopped at any time and started again.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import hpcopt
from hpcopt.config import load as load_config
from jobs.studies.launch import ROOT, Case, work

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["Case", "Study"]


class Study:
    """The runs of one study.

    Args:
        name: its directory below runs/studies.
    """

    def __init__(self, name: str) -> None:
        self.directory = ROOT / "runs" / "studies" / name
        self._finished: dict[Case, xarray.DataTree] = {}
        self._records: dict[Case, pandas.DataFrame] = {}

    def data(self, case: Case) -> xarray.DataTree | None:
        """A finished run's results; None while it is not finished.

        Raises:
            SystemExit: the run was made with other settings than the case has now.
        """
        if case in self._finished:
            return self._finished[case]
        try:
            data = hpcopt.load(self.directory / case.path)
        except hpcopt.UserError:
            return None
        if not data.attrs["end"]:
            return None
        wanted, found = load_config(case.config, case.overrides).tables(), json.loads(data.attrs["config"])
        other = [
            f"{table}.{key} = {found[table][key]!r}, now {value!r}"
            for table, values in wanted.items()
            for key, value in values.items()
            if key != "out" and found[table].get(key, value) != value
        ]
        if other:
            sys.exit(
                f"{self.directory / case.path}: was run with {'; '.join(other)}. Remove it to run it anew"
            )
        self._finished[case] = data
        return data

    def finished(self, cases: Iterable[Case]) -> list[tuple[Case, xarray.DataTree]]:
        """The cases that are finished, with their results."""
        found = [(case, self.data(case)) for case in cases]
        return [(case, data) for case, data in found if data is not None]

    def records(self, cases: Iterable[Case]) -> pandas.DataFrame:
        """The tidy table of which tables and figures are made: a row for every record of every finished case.

        Columns: ``case``, its name; the keys in which it differs from its config ("method.lr", …);
        ``record``, from 0; and the run's metrics by their names.
        """
        import pandas

        frames = []
        for case, data in self.finished(cases):
            metrics = data["metrics"].to_dataset().to_dataframe().reset_index()
            about = {"case": case.name} | {key: str(value) for key, value in case.settings.items()}
            frames.append(pandas.concat([pandas.DataFrame(about, metrics.index), metrics], axis=1))
        return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()

    def series(self, case: Case, name: str) -> list[float]:
        """A metric at every record of a case; empty while it is not finished."""
        if case not in self._records:
            found = self.records([case])
            if found.empty:
                return []
            self._records[case] = found
        return self._records[case][name].astype(float).tolist()

    def column(self, cases: Sequence[Case], name: str, record: int = -1) -> list[float]:
        """A metric of every case at one of its records; nan where a run or its record is missing."""
        every = [self.series(case, name) for case in cases]
        return [s[record] if -len(s) <= record < len(s) else math.nan for s in every]

    def run(self, cases: Sequence[Case]) -> None:
        """Runs what is missing, as many cases at once as there are cores for their ranks.

        Raises:
            SystemExit: stopped by a signal, or cases have failed (after all others were run).
        """
        waiting = [case for case in cases if self.data(case) is None]
        if not waiting:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "machine.json").write_text(json.dumps(machine()))
        work(self.directory, waiting)
        failed = [case.path for case in waiting if self.data(case) is None]
        if failed:
            sys.exit(f"{self.directory}: {len(failed)} runs are not finished: {', '.join(map(str, failed))}")

    def about(self, cases: Sequence[Case]) -> str:
        """A sentence on when, from which commit and on how many ranks the cases were run."""
        runs = [data.attrs for _, data in self.finished(cases)]
        if not runs:
            return f"None of {len(cases)} runs is finished."
        runs.sort(key=lambda attrs: str(attrs["end"]))
        days, commits = (
            " to ".join(dict.fromkeys(str(runs[at][key])[:length] for at in (0, -1)))
            for key, length in (("end", 10), ("commit", 12))
        )
        ranks = " or ".join(sorted({str(attrs["ranks"]) for attrs in runs}))
        return f"{len(runs)} of {len(cases)} runs finished; {days}, commit {commits}, {ranks} rank(s) each."

    def where(self) -> str:
        """A sentence on the machine of the latest runs."""
        file = self.directory / "machine.json"
        return json.loads(file.read_text()) if file.is_file() else "Nothing was run yet."


def machine() -> str:
    """CPU, cores, memory, versions, and whether the sources are those of the commit."""
    from hpcopt.storage.provenance import versions

    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    mpi = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    git = ["git", "-C", str(ROOT), "status", "--porcelain", "hpcopt"]
    changed = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.machine()}; {libraries}, {(mpi.splitlines() or [''])[0]}"
        + ("; the package had changes that were not committed yet." if changed else ".")
    )
