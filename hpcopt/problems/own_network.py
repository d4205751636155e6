"""A model and a loss of the user's own for a network that a config describes: "package.module:name"."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hpcopt.errors import UserError
from hpcopt.ground.own_code import load_own
from hpcopt.ground.words import suggestion
from hpcopt.math.streams import torch_seed


def own_model(place: str, options: Mapping[str, Any], seed: int) -> nn.Module:
    """What a class or function makes of the options, torch's global generator being at the run's seed.

    Args:
        place: problem.model.
        options: problem.model_options.
        seed: run.seed.

    Raises:
        UserError: there is no such thing, it does not take the options, or gives no module.
    """
    make = load_own("problem.model", place, "Class")
    _check_options("model", place, make, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "initial"))
        model = make(**options)
    if not isinstance(model, nn.Module):
        raise UserError(f'problem.model = "{place}": gives a {type(model).__name__}, no torch.nn.Module')
    return model


def own_loss(place: str, options: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (output, target, **options), or what a class makes of the options.

    Args:
        place: problem.loss.
        options: problem.loss_options.

    Raises:
        UserError: there is no such thing, or it does not take the options.
    """
    found = load_own("problem.loss", place, "function")
    if not inspect.isclass(found):
        _check_options("loss", place, found, options, None, None)
        return partial(found, **options)
    _check_options("loss", place, found, options)
    loss = found(**options)
    if not callable(loss):
        raise UserError(f'problem.loss = "{place}": gives a {type(loss).__name__}, which cannot be called')
    return loss


def _check_options(key: str, place: str, thing: Any, options: Mapping[str, Any], *others: None) -> None:
    """Raises `UserError` where a signature does not take the options after some other arguments."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # some compiled callables have none: let the call itself tell
        return
    try:
        signature.bind(*others, **options)
    except TypeError as error:
        unknown = next((name for name in options if name not in signature.parameters), "")
        hint = suggestion(unknown, signature.parameters) if unknown else ""
        raise UserError(
            f'problem.{key} = "{place}": refuses problem.{key}_options = {dict(options)!r}: {error}{hint}; '
            f"it takes {signature}"
        ) from None
