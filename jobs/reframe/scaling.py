"""The studies of `hpcopt scale` as ReFrame tests: one for each mode and number of ranks.

From the repository's root, on the cluster in a box (`--system=here`: without a queue):

    tools/cluster exec -- reframe -C jobs/reframe/settings.py -c jobs/reframe/scaling.py \\
        --system=box --prefix=runs/reframe --run --performance-report

Of your own, on other numbers of ranks, with one of both modes:

    HPCOPT_RANKS=1,2,4,8 reframe … --system=site -E 'mode == "strong"' \\
        -S config=$PWD/my.toml -S settings=run.workers=8,run.rounds=200

A test passes where run.h5 has the whole run that the study asks for. Seconds per round, speed-up and
efficiency relative to the fewest ranks are performance variables, which ReFrame judges where they have a
`reference`.
"""

import os
from pathlib import Path
from statistics import median

import numpy as np
import reframe as rfm
import reframe.utility.sanity as sn
import reframe.utility.typecheck as typ
from reframe.core.builtins import (
    parameter,
    performance_function,
    run_after,
    run_before,
    sanity_function,
    variable,
)

import hpcopt
from hpcopt.config import dump
from hpcopt.config.scale import plan

POINTS = sorted(int(ranks) for ranks in os.environ.get("HPCOPT_RANKS", "1,2,4").split(","))


@rfm.simple_test
class Scaling(rfm.RunOnlyRegressionTest):
    """A launch of a study; `--repeat=N` makes N of each."""

    mode = parameter(["strong", "weak"])
    ranks = parameter(POINTS)
    config = variable(str, value=str(Path(__file__).with_name("scaling.toml")))
    settings = variable(typ.List[str], value=[])

    valid_systems = ["*"]
    valid_prog_environs = ["hpcopt"]
    executable = "hpcopt"
    executable_opts = ["run", "point.toml", "--out", "run"]
    sourcesdir = None
    time_limit = "10m"

    @run_after("init")
    def place(self):
        """How many ranks; what speed-up is relative to comes first."""
        self.num_tasks = self.ranks
        if self.ranks != POINTS[0]:
            self.depends_on(self.sibling(POINTS[0]))

    @run_before("run")
    def write_config(self):
        """What `hpcopt scale` would launch."""
        self.plan = plan(Path(self.config), self.settings, {"mode": self.mode, "ranks": POINTS})
        Path(self.stagedir, "point.toml").write_text(dump(self.plan.config_of(self.ranks)), encoding="utf-8")

    @sanity_function
    def whole_run(self):
        """It is the run of this point, to its last round."""
        about, run = self.tree.attrs, self.plan.config_of(self.ranks).run
        loss = self.tree["metrics/loss"].values
        return sn.all(
            [
                sn.assert_eq(about["stopped_by"], "rounds"),
                sn.assert_eq(about["last_round"], run.rounds),
                sn.assert_eq((about["ranks"], about["workers"]), (self.ranks, run.workers)),
                sn.assert_true(np.isfinite(loss).all() and loss[-1] < loss[0], f"losses: {loss}"),
            ]
        )

    @performance_function("s")
    def seconds_per_round(self):
        """The median of the blocks after the warm-up."""
        return self.time()

    @performance_function("1")
    def speedup(self):
        """T(P₀) / T(P); with work in proportion to the ranks P / P₀ times that."""
        return self.efficiency_now() * self.ranks / POINTS[0]

    @performance_function("1")
    def efficiency(self):
        """What the speed-up is of the ideal one."""
        return self.efficiency_now()

    @property
    def tree(self):
        """The launch's results."""
        return hpcopt.load(Path(self.stagedir, "run"))

    def time(self):
        """Seconds per round."""
        metrics = self.tree["metrics"]
        timed = metrics["round"].values >= self.plan.table.warm_up
        rounds, seconds = (np.diff(metrics[name].values[timed]) for name in ("round", "seconds"))
        return median((seconds / rounds).tolist())

    def efficiency_now(self):
        """Of this launch, relative to that on the fewest ranks."""
        first = self if self.ranks == POINTS[0] else self.getdep(self.sibling(POINTS[0]))
        work = self.ranks / POINTS[0] if self.mode == "strong" else 1
        return first.time() / (self.time() * work)

    def sibling(self, ranks):
        """The name of the same mode's test on so many ranks."""
        kind = type(self)
        found = kind.get_variant_nums(mode=lambda mode: mode == self.mode, ranks=lambda given: given == ranks)
        return kind.variant_name(found[0])
