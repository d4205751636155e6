"""The [run] table: what does not depend on the method or the problem."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpcopt.config.base import Count, NonNegative, Positive, Table, Whole
from hpcopt.ground.words import counted, there_are

StopSignal = Literal["USR1", "USR2", "TERM", "INT", "HUP", "XCPU"]
MAX_RECORDS = 1_000_000
MAX_WORKERS = 1_000_000


class RunTable(Table):
    """How a run goes."""

    method: str = "allreduce_sgd"
    """which method, or "package.module:Class" for your own"""
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 8
    """workers N; ranks P host them in contiguous blocks, of about equal work where that differs, P <= N"""
    curvature_ranks: Whole = 0
    """ranks C of these P that host no worker, so P - C <= N: while the others go on, they compute the
    eigenpairs of dho2 with variant = "concurrent"; 0: all make the rounds, which then wait for these"""
    rounds: Whole = 100
    """rounds to make"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """everything random is a function of (seed, worker, round)"""
    evaluate_every: Count = 10
    """rounds between records in run.h5"""
    evaluate: list[Literal["train", "test", "global", "before_mixing"]] = Field(
        default=["train", "test", "global", "before_mixing"]
    )
    """what a record measures: the loss on training rows (what target_loss needs), test rows, and beside the
    workers' own models their mean, and those before the last averaging (that method.before_mixing keeps)"""
    evaluate_rows: Count | None = None
    """training rows of each worker that it is measured on, the same ones every time; all if not given"""
    checkpoint_every: Whole = 0
    """rounds between checkpoints; 0: only at the end and on a signal"""
    keep_checkpoints: Count = 2
    """how many of the newest checkpoints stay"""
    flush_seconds: NonNegative = 5.0
    """metrics are forced to the disk at least so often [s]"""
    stall_seconds: Positive = 300.0
    """without progress for so long, the job prints every rank's stack, names the rank that has stopped, if
    one has, and ends; to be longer than the longest round, evaluation or checkpoint [s]"""
    stop_signal: StopSignal = "USR1"
    """on which signal the ranks write a checkpoint and stop, as on TERM and INT (Ctrl-C), always; `hpcopt
    submit` asks Slurm for it. Others cannot be caught, or say something else; of these, mpirun hands on USR1
    and USR2 only"""
    out: Annotated[str, Field(min_length=1)] | None = None
    """the run's directory; runs/METHOD-PROBLEM-seedS if not given"""
    dtype: Literal["float32", "float64"] | None = None
    """precision of the parameters; if not given float32 for networks (also your own ones), else float64"""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """"auto" (the local rank's GPU where there is one), "cpu", "cuda" or "cuda:INDEX" """
    deterministic: bool = False
    """sums in the order of the workers, and of torch only what computes the same each time: bit-identical on
    any number of ranks, slower; an operator that has no such form is named"""
    reduction: Literal["auto", "mpi", "ring", "nccl"] = "auto"
    """how dense sums travel: MPI's allreduce, a ring over the hosts for slow links, NCCL (a GPU for each
    rank), or what is measured to be fastest at the start of the run, as is in what pieces long vectors are
    summed (on which their last bits may depend); not used with deterministic"""
    overlap: bool = False
    """send parts of a dense sum while the last worker's backward pass still computes the rest (CPU; pays
    where a rank has a core to spare)"""
    target_loss: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """stop at the first evaluation with a training loss at or below this"""
    max_seconds: Positive | None = None
    """stop when the optimisation clock passes this [s]"""
    metrics: list[str] = Field(default_factory=list)
    """metrics of your own, "package.module:function": called as function(problem, model) at every record"""

    def misfit(self, ranks: int, told: str = "") -> str:
        """Why a job of so many ranks cannot make such a run; empty if it can.

        Args:
            ranks: of the job.
            told: how many there are, in words, if there is more to say about it.
        """
        workers, beside, told = self.workers, self.curvature_ranks, told or there_are(ranks, "rank")
        rounders = ranks - beside
        if rounders < 1:
            return (
                f"curvature_ranks = {beside}, but {told}, of which one at least makes the rounds: "
                f"start at least {beside + 1} ranks or set run.curvature_ranks to at most {ranks - 1}"
            )
        if rounders > workers:
            which = f" but the {beside} for curvature" if beside else ""
            return (
                f"workers = {workers}, but {told}; every rank{which} hosts at least one worker: "
                f"start at most {counted(workers + beside, 'rank')} or set run.workers to at least {rounders}"
            )
        return ""

    @model_validator(mode="after")
    def _targets_are_measured(self) -> RunTable:
        if self.target_loss is not None and "train" not in self.evaluate:
            raise ValueError(f'target_loss = {self.target_loss}: needs "train" in evaluate = {self.evaluate}')
        return self

    @model_validator(mode="after")
    def _records_fit(self) -> RunTable:
        if self.rounds // self.evaluate_every > MAX_RECORDS:
            raise ValueError(
                f"rounds = {self.rounds} with evaluate_every = {self.evaluate_every} makes more than "
                f"{MAX_RECORDS} records; raise evaluate_every"
            )
        return self
