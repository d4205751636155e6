"""The [method] table: one class per method, by families, and which method has which."""

from __future__ import annotations

from pydantic import ConfigDict

from hpcopt.config.base import Table
from hpcopt.config.methods.delayed import DelayedSGDTable
from hpcopt.config.methods.first_order import (
    AllreduceSGDTable,
    PowerSGDTable,
    RandomKTable,
    RegTopKTable,
    TopKTable,
)
from hpcopt.config.methods.gossip import (
    DePRLTable,
    DPSGDTable,
    FedAvgTable,
    GradientTrackingTable,
    LocalTable,
)
from hpcopt.config.methods.hybrid import DHO2Table
from hpcopt.config.methods.linear import (
    AveragingTable,
    CoCoATable,
    CommonDirectionsTable,
    FADLTable,
    LBFGSTable,
    TRONTable,
)
from hpcopt.errors import UserError
from hpcopt.ground.own_code import is_own, load_own
from hpcopt.ground.words import suggestion

METHOD_TABLES: dict[str, type[Table]] = {
    "allreduce_sgd": AllreduceSGDTable,
    "delayed_sgd": DelayedSGDTable,
    "regtopk": RegTopKTable,
    "topk": TopKTable,
    "randomk": RandomKTable,
    "powersgd": PowerSGDTable,
    "deprl": DePRLTable,
    "dpsgd": DPSGDTable,
    "gradient_tracking": GradientTrackingTable,
    "local": LocalTable,
    "fedavg": FedAvgTable,
    "common_directions": CommonDirectionsTable,
    "fadl": FADLTable,
    "tron": TRONTable,
    "lbfgs": LBFGSTable,
    "averaging": AveragingTable,
    "cocoa": CoCoATable,
    "dho2": DHO2Table,
}
"""the built-in methods: CLASS of CLASSTable stands in hpcopt/methods/NAME.py"""
METHODS = {name: table.__name__.removesuffix("Table") for name, table in METHOD_TABLES.items()}


class UncheckedTable(Table):
    """The settings of a method of the user's own where its module cannot be imported (on a login node)."""

    model_config = ConfigDict(extra="allow")

    @property
    def beside(self) -> bool:
        """See `Table`: nobody knows yet."""
        return True


def method_table(name: str) -> type[Table]:
    """The class of a method's settings: of a built-in one's name, or of "package.module:Class".

    Raises:
        UserError: there is no such method.
    """
    if not is_own(name):
        if name in METHOD_TABLES:
            return METHOD_TABLES[name]
        allowed = ", ".join(f'"{method}"' for method in METHODS)
        raise UserError(
            f'[run] method = "{name}": no such method{suggestion(name, METHODS)}; allowed: {allowed}, '
            'or "package.module:Class"'
        )
    try:
        table = getattr(load_own("[run] method", name, "Class"), "table", None)
    except ModuleNotFoundError:  # what the user's module imports: torch, say, which jobs have
        return UncheckedTable
    if not (isinstance(table, type) and issubclass(table, Table)):
        raise UserError(f'[run] method = "{name}": is no hpcopt.Method[Settings, State]')
    return table
