"""The [method] table: one class per method, by families, and which method has which."""

from __future__ import annotations

from pydantic import ConfigDict

from hpcopt.config.base import Table
from hpcopt.config.problems import load_place
from hpcopt.errors import UserError
from hpcopt.ground.own_code import is_own, load_own
from hpcopt.ground.words import suggestion

METHOD_TABLES = {
    "allreduce_sgd": "hpcopt.config.methods.first_order:AllreduceSGDTable",
    "delayed_sgd": "hpcopt.config.methods.delayed:DelayedSGDTable",
    "regtopk": "hpcopt.config.methods.first_order:RegTopKTable",
    "topk": "hpcopt.config.methods.first_order:TopKTable",
    "randomk": "hpcopt.config.methods.first_order:RandomKTable",
    "powersgd": "hpcopt.config.methods.first_order:PowerSGDTable",
    "deprl": "hpcopt.config.methods.gossip:DePRLTable",
    "dpsgd": "hpcopt.config.methods.gossip:DPSGDTable",
    "gradient_tracking": "hpcopt.config.methods.gossip:GradientTrackingTable",
    "local": "hpcopt.config.methods.gossip:LocalTable",
    "fedavg": "hpcopt.config.methods.gossip:FedAvgTable",
    "common_directions": "hpcopt.config.methods.linear:CommonDirectionsTable",
    "fadl": "hpcopt.config.methods.linear:FADLTable",
    "tron": "hpcopt.config.methods.linear:TRONTable",
    "lbfgs": "hpcopt.config.methods.linear:LBFGSTable",
    "averaging": "hpcopt.config.methods.linear:AveragingTable",
    "cocoa": "hpcopt.config.methods.linear:CoCoATable",
    "dho2": "hpcopt.config.methods.hybrid:DHO2Table",
}
"""the built-in methods: CLASS of CLASSTable stands in hpcopt/methods/NAME.py; loaded by name, for to make all
tables takes longer than to check a config"""
METHODS = {name: place.rpartition(":")[2].removesuffix("Table") for name, place in METHOD_TABLES.items()}


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
            return load_place(METHOD_TABLES[name])
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
