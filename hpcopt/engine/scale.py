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
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpcopt.config.scale import Launch, Plan
from hpcopt.config.scale_plan import CONFIGS
from hpcopt.control import signals
from hpcopt.engine.scale_launch import last_words, start
from hpcopt.engine.scale_samples import attributes_of, median, samples_of, short, table
from hpcopt.errors import Interrupted, UserError
from hpcopt.ground import files
from hpcopt.ground.stamps import now
from hpcopt.ground.words import counted
from hpcopt.storage import scaling
from hpcopt.storage.lease import Lease
from hpcopt.storage.records import read_header, read_records

RUNS, LOGS, FAILED = "runs", "logs", "failed"


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
            self.say(table(samples))
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
                    samples += samples_of(self.plan, launch, place, records)
                    headers.append(records.attributes)
        if headers:
            scaling.write(self.directory / scaling.NAME, attributes_of(self.plan, headers), samples)
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
        config = self.directory / CONFIGS / f"p{launch.ranks:05d}.toml"
        log = self.directory / LOGS / f"{launch.name}.txt"
        code = start(self.plan.table.launcher, launch.ranks, config, self._run(launch), log)
        if code == Interrupted.exit_code or signals.received():
            raise stopped
        place = f"{1 + self.plan.order.index(launch)}/{len(self.plan.order)}"
        told = f"{place}: {counted(launch.ranks, 'rank')}, repeat {launch.repeat}"
        try:
            if code:
                raise UserError(last_words(log))
            samples = self._checked(launch)
        except UserError as error:
            failure = {"exit_code": code, "message": str(error), "when": now(), "ranks": launch.ranks}
            with files.replacing(self._failure(launch)) as partial:
                partial.write_text(json.dumps(failure), encoding="utf-8")
            self.say(f"{told}: failed (exit code {code}): {error}")
            return
        self.say(f"{told}: {short(median(samples))} s per round")
        if samples[0]["overcommitted"] and not self._warned():
            self.say(
                f"hpcopt: warning: {launch.ranks} ranks on {counted(samples[0]['cores'], 'core')}: ranks "
                "that share a core wait for each other, and such times say nothing of how far a run scales"
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

    def _checked(self, launch: Launch) -> list[scaling.Sample]:
        """The samples of a launch that has ended.

        Raises:
            UserError: it was not what the plan says.
        """
        path = self._run(launch) / "run.h5"
        with read_records(path) as records:
            about = records.attributes
            samples = samples_of(self.plan, launch, 0, records)
        if about["ranks"] != launch.ranks:
            started = counted(about["ranks"], "rank")
            raise UserError(f"not {launch.ranks} but {started} started: see --launcher")
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
