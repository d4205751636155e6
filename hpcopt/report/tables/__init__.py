"""The tables of a report, the same for the terminal, for HTML and for tests."""

from hpcopt.report.runs import Found
from hpcopt.report.tables import costs, groups, origin, results, scaling
from hpcopt.report.tables.table import Cell as Cell
from hpcopt.report.tables.table import Column as Column
from hpcopt.report.tables.table import Table as Table
from hpcopt.report.tables.table import shown as shown

OF_RUNS = (
    results.summary,
    results.medians,
    results.metrics,
    costs.time,
    costs.phases,
    costs.ports,
    results.workers,
    groups.staleness,
    groups.spectrum,
    origin.differences,
    origin.runs,
    origin.provenance,
)


def for_report(found: Found) -> list[Table]:
    """All tables that have a row, without columns that have nothing."""
    tables = [make(found.runs) for make in OF_RUNS]
    tables += [
        scaling.points(found.scalings),
        scaling.shares(found.scalings),
        origin.troubles(found.troubles),
    ]
    return [table.trimmed() for table in tables if table.rows]
