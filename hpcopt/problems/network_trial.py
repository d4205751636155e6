"""A network tried out on a few rows before the first round: see `hpcopt.problems.trial`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpcopt.errors import UserError
from hpcopt.math.flat import wave
from hpcopt.problems.trial import check_loss, check_passes, kind_of_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from hpcopt.problems.flat_module import FlatModule, Forward
    from hpcopt.problems.rows import Rows
    from hpcopt.problems.seeds import Seeds


class NetworkTrial:
    """Passes that leave the module and its buffers as they are.

    Args:
        module: the network.
        seeds: find out here whether training passes draw.
        loss: (forward pass, rows) -> the loss of a training pass of no worker in particular.
        objective: (output, targets) -> the loss.
        prepare: features as the network takes them.

    Attributes:
        spoils: whether a pass has changed the rows that it was given, as an in-place first layer does.
    """

    def __init__(
        self,
        module: FlatModule,
        seeds: Seeds,
        loss: Callable[[Forward, Rows], Tensor],
        objective: Callable[[Any, Tensor], Tensor],
        prepare: Callable[[Tensor], Tensor],
    ) -> None:
        self._module, self._seeds, self._loss = module, seeds, loss
        self._objective, self._prepare = objective, prepare
        self._dtype = module.initial.dtype
        self.spoils = False

    def training(self, rows: Rows, some: Rows, others: dict[str, Any]) -> tuple[Any, bool]:
        """The output of a training pass, and whether the loss has to see all rows at once.

        Args:
            rows: of the pass.
            some: on which the loss is tried.
            others: see `check_passes`.

        Raises:
            UserError: a pass fails, gives no number, or leaves behind what it must not.
        """
        self._module.train(True)
        try:
            output, loss = self._pass(rows)
            check_loss(loss)
            once = lambda: float(self._pass(rows)[1].detach())  # noqa: E731
            check_passes(once, self._dtype, self._module.module, others, self._module.kept)
            return output, self._mean_of(some) == "whole"
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"problem.model, loss and data do not fit together: a batch of {len(rows)} rows, "
                f"features {tuple(rows.features.shape)}, targets {tuple(rows.targets.shape)} "
                f"{rows.targets.dtype}: {error}"
            ) from error

    def _pass(self, rows: Rows) -> tuple[Any, Any]:
        """Output and loss of a training pass that changes no buffer."""
        seen: list[Any] = []

        def forward(features: Tensor) -> Tensor:
            seen.append(self._module.module(features))
            return seen[-1]

        module, buffers, version = self._module, self._module.buffers.clone(), rows.features._version
        with module.with_buffers(buffers), self._seeds.of(None, None) as seeded, torch.enable_grad():
            loss = seeded.run(lambda: self._loss(forward, rows), buffers, module.reopen)
        self.spoils = self.spoils or rows.features._version != version
        return seen[-1], loss

    def _mean_of(self, some: Rows) -> str:
        """What the loss is a mean of; near the start, for there all rows may have the same output."""
        start = self._module.initial
        x = start + wave(start)
        return kind_of_mean(lambda part: self._tried(x, some.at(part))[0], len(some), self._dtype)

    def at_some_point(self, some: Rows) -> list[float]:
        """The loss there, and the norm of the output where it is a tensor."""
        try:
            loss, output = self._tried(wave(self._module.initial), some)
        except (RuntimeError, ValueError):  # some models know which parameters make sense
            return []
        return [loss, float(output.detach().double().norm())] if isinstance(output, Tensor) else [loss]

    @torch.no_grad()
    def _tried(self, x: Tensor, rows: Rows) -> tuple[float, Any]:
        """Loss and output of some rows at x in evaluation mode; the module keeps the start."""

        def compute() -> tuple[float, Any]:
            output = module.module(self._prepare(rows.features))
            return float(self._objective(output, rows.targets)), output

        module, buffers, version = self._module, self._module.buffers.clone(), rows.features._version
        module.point(x)
        module.train(False)
        try:
            with module.with_buffers(buffers), self._seeds.of(None, None) as seeded:
                return seeded.run(compute, buffers, module.reopen)
        finally:
            module.point(module.initial)
            self.spoils = self.spoils or rows.features._version != version
