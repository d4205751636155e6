"""The user's own code, named in a config as "package.module:name": methods, problems, metrics."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from hpcopt.errors import UserError
from hpcopt.ground.words import suggestion

if TYPE_CHECKING:
    from types import ModuleType


def is_own(place: str) -> bool:
    """Whether a name is that of the user's own code, and not of something built in."""
    return ":" in place


def place_of(thing: Any) -> str:
    """The "package.module:name" of a class or function."""
    return f"{thing.__module__}:{thing.__qualname__}"


def load_own(key: str, place: str, what: str) -> Any:
    """Imports "package.module:name"; the current directory is searched after the installed packages.

    An error inside the user's module, while it is imported, is passed on with its traceback.

    Args:
        key: of the config, for messages: "problem.kind".
        place: what it says.
        what: a word for what is wanted: "factory", "class", "function".

    Raises:
        UserError: no such module, or nothing callable of that name in it.
    """
    module_name, _, name = place.partition(":")
    if not module_name or not name:
        raise UserError(f'{key} = "{place}": your own {what} is written "package.module:{what}"')
    module = _import(key, place, module_name)
    found: Any = module
    for part in name.split("."):  # a class may stand in another one
        found = getattr(found, part, None)
    if not callable(found) and (module_name == "__main__" or "<locals>" in name):
        raise UserError(
            f'{key} = "{place}": was defined in a script or a function; go on from Python, where it is'
        )
    if not callable(found):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UserError(
            f'{key} = "{place}": module {module_name} ({module.__file__}) has no {what} '
            f"{name}{suggestion(name, names)}"
        )
    return found


def _import(key: str, place: str, module_name: str) -> ModuleType:
    here = os.getcwd()
    if not {here, ""} & set(sys.path):
        # Last, so that files here hide no package and other imports do not search here first; and it stays,
        # because the user's code may import more when it is called.
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise  # the user's module was found; something that it imports was not
        raise UserError(
            f'{key} = "{place}": no module {missing} in {here} or among the installed packages'
        ) from None
