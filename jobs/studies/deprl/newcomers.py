"""Workers that come when training is over: heads of their own on the mean representation, which is frozen."""

from __future__ import annotations

from jobs.studies.deprl.personal import COLUMNS, CONFIG, METHODS, SEEDS
from jobs.studies.markdown import table
from jobs.studies.statistics import paired, spread
from jobs.studies.study import Case, Study

ROWS = ("deprl", "dpsgd", "fedavg", "local", "ours")
SPLITS = ("rich-0.1", "poor-0.5")
WORKERS = 16
STEPS = 200


def case(column: str, method: str, seed: int) -> Case:
    """A run with as many newcomers as workers."""
    settings = METHODS[method].settings | COLUMNS[column].settings
    settings |= {"run.workers": WORKERS, "run.seed": seed}
    settings |= {"problem.new_workers": WORKERS, "problem.new_worker_steps": STEPS}
    return Case(f"{column}/{method}-seed{seed}", CONFIG, settings)


def cases() -> list[Case]:
    """All runs, seed by seed."""
    return [case(column, method, seed) for seed in SEEDS for column in SPLITS for method in ROWS]


def run(study: Study) -> None:
    """Runs what is missing."""
    study.run(cases())


def section(study: Study) -> str:
    """The table."""

    def accuracies(column: str, method: str, record: int = -1) -> list[float]:
        runs = [case(column, method, seed) for seed in SEEDS]
        return [100 * value for value in study.column(runs, "new_worker_accuracy", record)]

    names = [COLUMNS[column].label for column in SPLITS]
    untrained = ["no training (round 0)", *(spread(accuracies(column, "deprl", 0)) for column in SPLITS)]
    rows = [
        [METHODS[method].label, *(spread(accuracies(column, method)) for column in SPLITS)] for method in ROWS
    ]
    less = [
        [
            METHODS[method].label,
            *(paired(accuracies(column, "deprl"), accuracies(column, method)) for column in SPLITS),
        ]
        for method in ROWS[1:]
    ]
    parts = [
        f"## New workers, {WORKERS} beside {WORKERS} that train, seeds {SEEDS[0]} to {SEEDS[-1]}",
        study.about(cases()),
        f"Accuracy % of new workers on their own test rows. Each fits a head, {STEPS} SGD steps of rate 0.1\n"
        "from the initial values, on the mean of the workers' representations at round 100, to as many\n"
        "rows as a worker has. Where rows are plentiful no worker has trained on them; where each has 100,\n"
        "workers draw rows independently.",
        table(["representation of", *names], [untrained, *rows]),
        "DePRL minus the others, points, with 95 % intervals:",
        table(["than", *names], less),
    ]
    return "\n\n".join(parts)
