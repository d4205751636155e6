"""The [method] table, one class per method."""

from __future__ import annotations

from hpcopt.config.base import FirstOrder, Table


class AllreduceSGDTable(FirstOrder):
    """Synchronous SGD, momentum or Adam on the dense mean gradient: the baseline."""


METHOD_TABLES: dict[str, type[Table]] = {
    "allreduce_sgd": AllreduceSGDTable,
}
