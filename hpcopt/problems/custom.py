"""The user's own problem: kind = "package.module:factory"."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from hpcopt.config.problems import ProblemTable
from hpcopt.errors import UserError
from hpcopt.ground.own_code import load_own
from hpcopt.ground.words import suggestion

if TYPE_CHECKING:
    from hpcopt.problems.base import Recipe


class CustomTable(ProblemTable):
    """Your own: ``factory(workers=N, **keys)``, with every other key of the table, returns a recipe.

    A factory with a parameter ``seed`` is given that of [run], where [problem] has no other.
    """

    model_config = ConfigDict(extra="allow")

    def dump(self) -> dict[str, Any]:
        """What was given: a factory need not know any other key."""
        return self.model_dump(exclude_none=True, exclude_unset=True)

    def recipe(self) -> Recipe:
        """What the factory makes of the keys; ``weights``, which every table has, only where it was given.

        Raises:
            UserError: the factory cannot be loaded, refuses a key, or returns something without ``bind``.
        """
        kind, keys = self.kind, {"workers": self.workers} | self.dump()
        del keys["kind"]
        factory = load_own("problem.kind", kind, "factory")
        if "seed" not in keys and _asks_for_seed(factory):
            keys["seed"] = self._seed
        _check_keys(kind, factory, keys)
        recipe: Recipe = factory(**keys)
        if not callable(getattr(recipe, "bind", None)):
            raise UserError(
                f'problem.kind = "{kind}": the factory returned a {type(recipe).__name__}, which has no '
                "bind(share); it must return a recipe (see hpcopt.problems.base)"
            )
        return recipe


def _asks_for_seed(factory: Any) -> bool:
    try:
        return "seed" in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def _check_keys(kind: str, factory: Any, keys: dict[str, Any]) -> None:
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
            f'problem.kind = "{kind}": the factory refuses its keys: {error}{suggestion(unknown, known)}; '
            f"it is called as factory(workers=N, **keys) and takes {signature}"
        ) from None
