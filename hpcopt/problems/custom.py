"""The user's own problem: kind = "package.module:factory"."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from hpcopt.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

    from hpcopt.config.problems import CustomTable
    from hpcopt.problems.base import Recipe

Factory = Callable[..., Any]


def from_table(table: CustomTable, workers: int) -> Recipe:
    """The recipe that the user's factory makes of the table's keys.

    ``weights``, which every table has, is passed on only where it was given.

    Raises:
        UserError: the factory cannot be loaded, refuses a key, or returns no recipe.
    """
    keys = dict(table.model_extra or {})
    if "weights" in table.model_fields_set:
        keys["weights"] = table.weights
    return build(table.kind, workers, **keys)


def build(kind: str, workers: int, **keys: Any) -> Recipe:
    """Calls ``factory(workers=workers, **keys)``.

    Args:
        kind: ``"package.module:factory"``.
        workers: N.
        keys: what the factory is given besides.

    Raises:
        UserError: the factory cannot be loaded, refuses a key, or returns something without ``bind``.
    """
    factory = load_factory(kind)
    _check_keys(kind, factory, {"workers": workers, **keys})
    recipe = factory(workers=workers, **keys)
    if not callable(getattr(recipe, "bind", None)):
        raise UserError(
            f'problem.kind = "{kind}": the factory returned {_article(recipe)}, which has no bind(share); '
            "it must return a recipe (see hpcopt.problems.base)"
        )
    return cast("Recipe", recipe)


def load_factory(kind: str) -> Factory:
    """Imports ``"package.module:factory"``; the current directory is searched after the installed packages.

    An error inside the user's module, while it is imported, is passed on with its traceback.

    Raises:
        UserError: no such module, or no such function in it.
    """
    module_name, _, name = kind.partition(":")
    if not module_name or not name:
        raise UserError(f'problem.kind = "{kind}": your own problem is written "package.module:factory"')
    module = _import(kind, module_name)
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(
            f'problem.kind = "{kind}": module {module_name} ({module.__file__}) has no function '
            f"{name}{_suggestion(name, names)}"
        )
    return cast("Factory", factory)


def _import(kind: str, module_name: str) -> ModuleType:
    here = os.getcwd()
    if not {here, ""} & set(sys.path):
        # Last, so that files here hide no package and other imports do not search here first; and it stays,
        # because the factory may import more when it is called.
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise  # the user's module was found; something that it imports was not
        raise UserError(
            f'problem.kind = "{kind}": no module {missing} in {here} or among the installed packages'
        ) from None


def _check_keys(kind: str, factory: Factory, keys: dict[str, Any]) -> None:
    """Raises `UserError` where the factory's signature does not take these keys."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some compiled callables have none: let the call itself tell
        return
    try:
        signature.bind(**keys)
    except TypeError as error:
        known = [name for name in signature.parameters if name != "workers"]
        unknown = next((key for key in keys if key not in signature.parameters), "")
        raise UserError(
            f'problem.kind = "{kind}": the factory refuses its keys: {error}{_suggestion(unknown, known)}; '
            f"it is called as factory(workers=N, **keys) and takes {signature}"
        ) from None


def _suggestion(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=1) if name else []
    return f"; did you mean {close[0]}?" if close else ""


def _article(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
