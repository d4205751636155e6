"""Which name is which method or problem; from a config, or from a few lines of Python, to either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hpcopt.config import RunConfig, check_table, from_tables
from hpcopt.config.methods import METHODS
from hpcopt.config.problems import IN_PYTHON
from hpcopt.engine.own_metrics import Metric, places
from hpcopt.ground.own_code import is_own, load_own, place_of

if TYPE_CHECKING:
    from hpcopt.methods.base import Method
    from hpcopt.problems.base import Recipe


def config_in_python(
    caller: str,
    method: Method[Any, Any],
    problem: Recipe,
    metrics: Sequence[Metric | str],
    settings: dict[str, Any],
) -> RunConfig:
    """The config of a run whose method, problem and metrics were made in Python.

    Args:
        caller: for messages: "hpcopt.run".
        method, problem, metrics: what is run.
        settings: keys of the [run] table.

    Raises:
        UserError: a setting is wrong.
    """
    run = {"method": _name_of(method), "workers": problem.workers, "metrics": places(metrics)}
    tables = {
        "run": run | settings,
        "method": method.settings.model_dump(exclude_none=True),
        "problem": {"kind": IN_PYTHON, "recipe": type(problem).__name__},
    }
    return from_tables(tables, caller, method.table)


@contextmanager
def filled_in(method: Method[Any, Any], config: RunConfig) -> Iterator[None]:
    """Within, the method's settings are the run's, whose defaults may depend on other keys (`lr_horizon`)."""
    given, method.settings = method.settings, config.method
    try:
        yield
    finally:
        method.settings = given


def method_of(config: RunConfig) -> Method[Any, Any]:
    """The method that a config names, with its settings.

    Raises:
        UserError: the user's own class is not there, or refuses its settings.
    """
    name = config.run.method
    kind: type[Method[Any, Any]] = load_own("run.method", name if is_own(name) else _built_in(name), "Class")
    if isinstance(config.method, kind.table):
        return kind(config.method)
    # where the config was read its class could not be imported: now it is
    return kind(check_table(kind.table, config.method.model_dump(), "[method]"))


def _name_of(method: Method[Any, Any]) -> str:
    """As a config names it."""
    place = place_of(type(method))
    return next((name for name in METHODS if _built_in(name) == place), place)


def _built_in(name: str) -> str:
    return f"hpcopt.methods.{name}:{METHODS[name]}"
