"""Which name is which method or problem; from a config, or from a few lines of Python, to either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hpcopt.config import RunConfig, check_table, from_tables
from hpcopt.config.methods import METHODS
from hpcopt.config.problems import IN_PYTHON
from hpcopt.engine.own_metrics import Metric, places
from hpcopt.errors import UserError
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
    check_made(caller, "method", method, "settings")
    check_made(caller, "problem", problem, "bind")
    if not isinstance(getattr(problem, "workers", None), int):
        raise UserError(f"{caller}: problem = {problem!r}: says not for how many workers it is (workers)")
    run = {"method": name_of(type(method)), "workers": problem.workers, "metrics": places(metrics)}
    tables = {
        "run": run | settings,
        "method": method.settings.model_dump(exclude_none=True),
        "problem": {"kind": IN_PYTHON, "recipe": type(problem).__name__},
    }
    config = settled(from_tables(tables, caller, method.table), problem)
    check_settings(method, config, caller)
    return config


def check_made(caller: str, name: str, thing: Any, attribute: str) -> None:
    """Raises `UserError` where a class or a function was given in place of what it makes, or nothing such."""
    if isinstance(thing, type) or not hasattr(thing, attribute):
        what = getattr(thing, "__name__", "")
        hint = f"; call it: {name} = {what}(…)" if callable(thing) and what else ""
        raise UserError(f"{caller}: {name} = {thing!r}: is none{hint}")


def settled(config: RunConfig, problem: Recipe) -> RunConfig:
    """With what a config leaves to the problem: the precision, where it names none."""
    dtype = config.run.dtype or getattr(problem, "default_dtype", "float64")
    return replace(config, run=config.run.model_copy(update={"dtype": dtype}))


def check_settings(method: Method[Any, Any], config: RunConfig, caller: str) -> None:
    """Raises `UserError` where a method has been given other settings than the config says.

    Keys that were not given may differ: their defaults may depend on the run. TOML has no None, so that a key
    that is None, where its default is not, would become the default.
    """
    given = method.settings
    for key in sorted(given.model_fields_set):
        mine, run = getattr(given, key), getattr(config.method, key)
        if mine != run and not (mine is None and key in given.horizons):
            raise UserError(f"{caller}: [method] {key} = {mine!r} was given, but the run has {run!r}")


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


def check_class(kind: type[Method[Any, Any]], config: RunConfig) -> None:
    """Raises `UserError` where a method is not of the class that the run was begun with.

    A script's class may have become that of a module.
    """
    name, begun = name_of(kind), config.run.method
    if name != begun and not (is_own(name) and name.partition(":")[2] == begun.partition(":")[2]):
        raise UserError(f'method = {kind.__name__}: is "{name}", but the run was begun with "{begun}"')


def name_of(kind: type[Method[Any, Any]]) -> str:
    """As a config names it: by the class, whatever it is called."""
    place = place_of(kind)
    return next((name for name in METHODS if _built_in(name) == place), place)


def _built_in(name: str) -> str:
    return f"hpcopt.methods.{name}:{METHODS[name]}"
