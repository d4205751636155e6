"""A scaling study: its launches, one after the other, and what they measured. No MPI in this process.

DIR/scale.toml                the plan
DIR/configs/pRANKS.toml       what a point's launches run
DIR/runs/pRANKS-rREPEAT/      the run of a launch, without checkpoints
DIR/logs/pRANKS-rREPEAT.txt   what it printed
DIR/failed/pRANKS-rREPEAT.json   how it failed; removed when it is done after all
DIR/scaling.h5                the samples of all launches that are done (`hpcopt.storage.scaling`)
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcopt.config.scale import CONFIGS, RANKS, Launch, Plan
from hpcopt.control import signals
from hpcopt.errors import Interrupted, UserError
from hpcopt.ground import files
from hpcopt.ground.stamps import now
from hpcopt.storage import scaling
from hpcopt.storage.lease import Lease
from hpcopt.storage.records import Records, read_header, read_records

RUNS, LOGS, FAILED = "runs", "logs", "failed"
COPIED = ("method", "problem", "version", "commit", "libraries")
"""attributes of run.h5 that the study has too"""
TOLD = 2000
"""letters of what a launch printed last that a failure keeps"""
ENDING = 60.0
"""seconds that a launch has to end when it was told to"""


@dataclass(frozen=True)
class Study:
    """A study in its directory.

    Attributes:
        directory: absolute.
        plan: as it is kept there.
        say: gets lines for people.
    """

    directory: Path
    plan: Plan
    say: Callable[[str], object]

    def run(self, points: Collection[int], retry: bool = False) -> bool:
        """Makes the launches of these points that are missing, collects, and tells what came of it.

        Args:
            points: numbers of ranks; none: it only collects.
            retry: launches that failed, too.

        Returns:
            Whether all launches of these points, or of all if there are none, are done.

        Raises:
            Interrupted: a signal came; the same again goes on.
            UserError: somebody else makes launches there, a file cannot be written, or there is no launcher.
        """
        with self._owned():
            for launch in self.missing(points):
                if retry or not self._failure(launch).exists():
                    self._make(launch)
                    self.collect()
            samples = self.collect()
        if samples:
            self.say(_table(samples))
        missing = self.missing(points or self.plan.table.ranks)
        failed = [launch.name for launch in missing if self._failure(launch).exists()]
        if failed:
            self.say(f"failed: {', '.join(failed)}; why is in {self.directory / FAILED}; --retry tries again")
        if len(missing) > len(failed):
            self.say(f"not made: {', '.join(one.name for one in missing if one.name not in failed)}")
        self.say(
            f"{self.directory}: {len(self.plan.order) - len(self.missing(self.plan.table.ranks))} of "
            f"{len(self.plan.order)} launches are done"
        )
        return not missing

    def missing(self, points: Collection[int]) -> list[Launch]:
        """The launches of these points that are not done."""
        return [launch for launch in self.plan.order if launch.ranks in points and not self.done(launch)]

    def done(self, launch: Launch) -> bool:
        """Whether it has ended and did not fail."""
        if self._failure(launch).exists():
            return False
        return read_header(self._run(launch) / "run.h5").get("stopped_by", "") not in ("", "not finite")

    def collect(self) -> list[scaling.Sample]:
        """Writes scaling.h5 from the launches that are done; without any there is none."""
        samples, headers = [], []
        for place, launch in enumerate(self.plan.order):
            if self.done(launch):
                with read_records(self._run(launch) / "run.h5") as records:
                    samples += self._samples(launch, place, records)
                    headers.append(records.attributes)
        if headers:
            scaling.write(self.directory / scaling.NAME, self._attributes(headers), samples)
        return samples

    def _run(self, launch: Launch) -> Path:
        return self.directory / RUNS / launch.name

    def _failure(self, launch: Launch) -> Path:
        return self.directory / FAILED / f"{launch.name}.json"

    @contextmanager
    def _owned(self) -> Iterator[None]:
        """Nobody else makes launches there meanwhile."""
        lease = Lease(self.directory)
        lease.take()
        try:
            yield
        finally:
            lease.release()

    def _make(self, launch: Launch) -> None:
        """One launch, to its end; a failure is kept and told."""
        stopped = Interrupted(
            f"stopped by a signal at {launch.name}; go on with: hpcopt scale {self.directory}"
        )
        if signals.received():
            raise stopped
        self._clear(launch)
        code, printed = self._start(launch)
        if code == Interrupted.exit_code or signals.received():
            raise stopped
        place = f"{1 + self.plan.order.index(launch)}/{len(self.plan.order)}"
        told = f"{place}: {launch.ranks} ranks, repeat {launch.repeat}"
        try:
            if code:
                raise UserError(_last_words(printed))
            samples = self._checked(launch)
        except UserError as error:
            failure = {"exit_code": code, "message": str(error), "when": now(), "ranks": launch.ranks}
            with files.replacing(self._failure(launch)) as partial:
                partial.write_text(json.dumps(failure), encoding="utf-8")
            self.say(f"{told}: failed (exit code {code}): {error}")
            return
        self.say(f"{told}: {_short(_median(samples))} s per round")
        if samples[0]["overcommitted"] and not self._warned():
            self.say(
                f"hpcopt: warning: {launch.ranks} ranks on {samples[0]['cores']} cores: ranks that share "
                "a core wait for each other, and such times say nothing of how far a run scales"
            )
        shutil.rmtree(self._run(launch) / "checkpoints", ignore_errors=True)  # one per launch adds up

    def _warned(self) -> bool:
        """Whether an earlier launch was overcommitted too."""
        path = self.directory / scaling.NAME
        return path.exists() and bool(scaling.read(path)[1]["overcommitted"].any())

    def _clear(self, launch: Launch) -> None:
        """What a launch that was cut off or failed has left is no measurement."""
        run = self._run(launch)
        with files.refusals(run):
            for path in (self.directory / LOGS, self.directory / FAILED, run):
                path.mkdir(parents=True, exist_ok=True)
            lease = Lease(run)
            lease.take()  # it is not going on there after all
            lease.release()
            shutil.rmtree(run)
        files.discard(self._failure(launch))

    def _start(self, launch: Launch) -> tuple[int, str]:
        """Its exit code, and what it printed."""
        words = [word.replace(RANKS, str(launch.ranks)) for word in shlex.split(self.plan.table.launcher)]
        config = self.directory / CONFIGS / f"p{launch.ranks:05d}.toml"
        command = [*words, _hpcopt(), "run", str(config), "--out", str(self._run(launch))]
        log = self.directory / LOGS / f"{launch.name}.txt"
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                )
            except OSError as error:
                raise UserError(
                    f"{words[0]}: cannot be started ({error.strerror}); --launcher names another one"
                ) from None
            code = _wait(process)
        return code, log.read_text("utf-8", errors="replace")

    def _checked(self, launch: Launch) -> list[scaling.Sample]:
        """The samples of a launch that has ended.

        Raises:
            UserError: it was not what the plan says.
        """
        path = self._run(launch) / "run.h5"
        with read_records(path) as records:
            about = records.attributes
            samples = self._samples(launch, 0, records)
        if about["ranks"] != launch.ranks:
            raise UserError(f"{about['ranks']} ranks were started, not {launch.ranks}: see --launcher")
        if not samples:
            raise UserError(
                f"ended after {about['last_round']} rounds ({about['stopped_by']}), none of them after "
                "the warm-up"
            )
        for other in self.plan.order:
            if self.plan.table.mode == "weak" and other != launch and self.done(other):
                then = read_header(self._run(other) / "run.h5")
                each, before = (one["rows"] / one["workers"] for one in (about, then))
                if each != before:
                    raise UserError(
                        f"{each:g} rows per worker, but {before:g} in {other.name}: not weak scaling"
                    )
                break
        return samples

    def _samples(self, launch: Launch, place: int, records: Records) -> list[scaling.Sample]:
        """A row for each block of rounds after the warm-up: differences of what run.h5 adds up."""
        about, warm_up = records.attributes, self.plan.table.warm_up or 0
        timed = np.asarray(records["metrics/round"], np.int64) >= warm_up
        columns = {name: records[f"metrics/{name}"][timed] for name in ("round", *_ADDED, "peak_memory")}
        phases = {name: records[f"phases/{key}"][timed] for name, key in _PHASES.items()}
        common = {
            "ranks": launch.ranks,
            "workers": about["workers"],
            "hosts": len(json.loads(about["hosts"])),
            "cores": about["cores"],
            "repeat": launch.repeat,
            "launch": place,
            "overcommitted": int(launch.ranks > about["cores"]),
        }
        rows = []
        for block in range(int(timed.sum()) - 1):
            row = common | {"block": block, "peak_memory": columns["peak_memory"][block + 1]}
            row |= {name: np.diff(columns[name])[block] for name in _ADDED}
            row |= {"rounds": np.diff(columns["round"])[block]}
            for name, values in phases.items():
                row[name] = dict(zip(records.labels["phase"], np.diff(values, axis=0)[block], strict=True))
            rows.append(row)
        return rows

    def _attributes(self, headers: list[dict[str, Any]]) -> dict[str, Any]:
        """Of scaling.h5: `COPIED` as in the last launch, and what the plan says."""
        table = self.plan.table
        complete = len(headers) == len(self.plan.order)
        return {key: headers[-1][key] for key in COPIED} | {
            "mode": table.mode,
            "config": json.dumps(self.plan.config.tables()),
            "start": min(header["start"] for header in headers),
            "end": max(header["end"] for header in headers) if complete else "",
            "warm_up": table.warm_up,
            "ranks": json.dumps(table.ranks),
            "repeats": table.repeats,
            "launcher": table.launcher,
        }


_ADDED = ("seconds", "gradients", "bytes_sent")
_PHASES = dict(zip(scaling.PHASES, ("seconds", "seconds_min", "seconds_mean"), strict=True))


def _table(samples: list[scaling.Sample]) -> str:
    """Median seconds per round of each point, as text."""
    lines = ["ranks  workers  launches  s per round"]
    for ranks in sorted({sample["ranks"] for sample in samples}):
        here = [sample for sample in samples if sample["ranks"] == ranks]
        launches, note = len({sample["launch"] for sample in here}), ""
        if here[0]["overcommitted"]:
            note = "  more ranks than cores"
        lines.append(f"{ranks:5}  {here[0]['workers']:7}  {launches:8}  {_short(_median(here)):>11}{note}")
    return "\n".join(lines)


def _median(samples: list[scaling.Sample]) -> float:
    return float(np.median([sample["seconds"] / sample["rounds"] for sample in samples]))


def _short(value: float) -> str:
    return f"{value:.4g}"


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Until it has ended; a signal that is for us is its ranks' too, and they end by themselves."""
    handed_on = False
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(0.5)
            if signals.received() and not handed_on:
                process.send_signal(signals.STOPPING[0])
                handed_on = True
    finally:
        if process.poll() is None:  # an interrupt from the keyboard, or a bug
            process.terminate()
            try:
                process.wait(ENDING)
            except subprocess.TimeoutExpired:
                process.kill()


def _hpcopt() -> str:
    """The command of this installation."""
    beside = Path(sys.executable).parent / "hpcopt"
    return str(beside) if os.access(beside, os.X_OK) else "hpcopt"


def _last_words(printed: str) -> str:
    """Our own error in what a launch printed, or its end."""
    _, found, message = printed.rpartition("hpcopt: error: ")
    text = message if found else printed
    return text.strip()[:TOLD] if found else text.strip()[-TOLD:] or "it printed nothing"
