"""`tools/bench workers`: the loops by hand, a module for each worker, and all under torch.func.vmap."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import hpcopt
from hpcopt.problems import models
from hpcopt.problems.base import Draw, Share
from hpcopt.problems.batches import Batches

LR = 0.05
SEED = 0
CLASSES = 10


@dataclass(frozen=True)
class Case:
    """What is computed.

    Attributes:
        name: in the table.
        method: hpcopt's, whose steps and averages the loops by hand make.
        model, hidden, image: a built-in network, and what it takes.
        workers, rows, batch: N, training rows of each, and of a mini-batch.
        steps: of a worker in a round.
        rounds: that are timed at once.
        stacks: whether vmap is compared with at all.
        most: rounds that mini-batches are drawn for; then they come again.
    """

    name: str
    method: Callable[[], Any]
    model: str
    image: tuple[int, int, int]
    workers: int
    rows: int
    batch: int
    steps: int
    rounds: int
    hidden: tuple[int, ...] = ()
    stacks: bool = True
    most: int = 20

    @property
    def kind(self) -> str:
        """The method's name."""
        return type(self.method()).__name__

    def network(self) -> nn.Module:
        """The start."""
        model = models.build(self.model, self.image, CLASSES, self.hidden)
        models.initialise(model, SEED)
        return model


class Data:
    """Rows that have nothing to learn in them, as many for each worker; a fifth as many test rows."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(SEED)
        width = case.image[0] * case.image[1] * case.image[2]
        self.counts = {"train": case.rows, "test": case.rows // 5}
        self.x = {k: torch.randn(case.workers, n, width, generator=generator) for k, n in self.counts.items()}
        self.y = {
            k: torch.randint(CLASSES, (case.workers, n), generator=generator) for k, n in self.counts.items()
        }

    def recipe(self, case: Case) -> hpcopt.Network:
        """The problem: the rows of a worker are one after the other."""
        rows = {k: [range(i * n, (i + 1) * n) for i in range(case.workers)] for k, n in self.counts.items()}
        train, test = ((self.x[k].flatten(0, 1), self.y[k].flatten()) for k in ("train", "test"))
        keys: dict[str, Any] = {"private": ["head.*"]} if case.kind == "DePRL" else {}
        return hpcopt.Network(
            *(case.network(), nn.functional.cross_entropy, train, test),
            workers=case.workers,
            batch_size=case.batch,
            rows=rows["train"],
            test_rows=rows["test"],
            **keys,
        )


class ByHand:
    """What both loops by hand have: rows, and the mini-batches of all rounds.

    Attributes:
        module: the network.
        x, y: training rows, (N, r, …) and (N, r).
        shared: how many of the module's parameters, from the first on, are no head.
    """

    def __init__(self, case: Case, data: Data, device: torch.device) -> None:
        self.case, self.device = case, device
        self.module = case.network().to(device)
        self.x, self.y = data.x["train"].to(device), data.y["train"].to(device)
        self.tests = data.x["test"].to(device), data.y["test"].to(device)
        self.names = [name for name, _ in self.module.named_parameters()]
        self.shared = sum(not name.startswith("head.") for name in self.names)
        self._drawn = self._draws() if case.steps else []
        self._round = 0

    def _draws(self) -> list[Tensor]:
        """Which rows each worker takes in each step, (N, b), of more rounds than are made."""
        case = self.case
        batches = Batches(
            Share(range(case.workers), case.workers, SEED), [case.rows] * case.workers, case.batch
        )
        draws = [Draw(r, s, case.steps) for r in range(case.most) for s in range(case.steps)]
        chosen = [[batches.select(i, draw) for draw in draws] for i in range(case.workers)]
        return [torch.stack([of[k] for of in chosen]).to(self.device) for k in range(len(draws))]  # type: ignore[misc]

    def drawn(self, step: int) -> Tensor:
        """Those of a step of this round."""
        return self._drawn[(self._round * self.case.steps + step) % len(self._drawn)]

    def round(self) -> None:
        """Makes one."""
        self.make()
        self._round += 1

    def make(self) -> None:
        """The steps and the averages of a round."""
        raise NotImplementedError


def mixed(tensors: Iterable[Tensor]) -> None:
    """A ring's average with Metropolis weights, in place."""
    for X in tensors:
        X.copy_((X + X.roll(1, 0) + X.roll(-1, 0)).div_(3))


def apart(X: Tensor) -> Tensor:
    """The mean of ‖x_i − x̄‖², summed in float64."""
    return (X - X.mean(0)).square_().sum(dtype=torch.float64) / len(X)


class InTurn(ByHand):
    """A module for each worker, its parameters views of a row of X; each makes all its steps at once."""

    def __init__(self, case: Case, data: Data, device: torch.device) -> None:
        super().__init__(case, data, device)
        start = torch.cat([p.detach().flatten() for p in self.module.parameters()])
        models = 1 if case.kind == "FedAvg" else case.workers
        self.X = start.repeat(models, 1)
        self.Y, self.G = (torch.zeros_like(self.X) for _ in range(2))
        self.modules = [copy.deepcopy(self.module) for _ in range(models)]
        for module, row in zip(self.modules, self.X, strict=True):
            for parameter, view in zip(module.parameters(), self._views(row), strict=True):
                parameter.data = view
        self._parameters: list[list[Tensor]] = [list(module.parameters()) for module in self.modules]
        self._cut = sum(p.numel() for p in self._parameters[0][: self.shared])
        self._common, self._mean = start.clone(), torch.zeros_like(start)

    def _views(self, row: Tensor) -> list[Tensor]:
        shapes = [p.shape for p in self.module.parameters()]
        pieces = row.split([shape.numel() for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def _gradient(self, k: int, i: int, step: int, part: slice = slice(None)) -> tuple[Tensor, ...]:
        """Of module k with worker i's rows."""
        rows = self.drawn(step)[i]
        output = self.modules[k](self.x[i].index_select(0, rows))
        loss = nn.functional.cross_entropy(output, self.y[i].index_select(0, rows))
        return torch.autograd.grad(loss, self._parameters[k][part])

    @torch.no_grad()
    def _move(self, k: int, gradient: Sequence[Tensor], part: slice = slice(None)) -> None:
        torch._foreach_add_(self._parameters[k][part], list(gradient), alpha=-LR)

    def make(self) -> None:
        """See `ByHand`."""
        case, kind = self.case, self.case.kind
        for i in range(case.workers):
            k = 0 if kind == "FedAvg" else i
            if kind == "FedAvg":
                self.X[0].copy_(self._common)
            if kind == "GradientTracking":
                self._track(i)
                continue
            for step in range(case.steps):
                head = slice(self.shared, None) if step == 0 else slice(self.shared)
                part = head if kind == "DePRL" else slice(None)
                self._move(k, self._gradient(k, i, step, part), part)
            if kind == "FedAvg":
                self._mean.add_(self.X[0], alpha=1 / case.workers)
        if kind == "FedAvg":
            self._common.copy_(self._mean)
            self._mean.zero_()
        averaged = {
            "DPSGD": [self.X],
            "DePRL": [self.X[:, : self._cut]],
            "GradientTracking": [self.X, self.Y],
        }
        mixed(averaged.get(kind, []))

    def _track(self, i: int) -> None:
        now = self._gradient(i, i, 0)
        y, last = self._views(self.Y[i]), self._views(self.G[i])
        torch._foreach_add_(y, list(now))
        torch._foreach_sub_(y, last)
        torch._foreach_copy_(last, list(now))
        self.X[i].add_(self.Y[i], alpha=-LR)

    def points(self) -> Tensor:
        """Where all are, (N, d)."""
        return self._common.expand(self.case.workers, -1) if self.case.kind == "FedAvg" else self.X

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Mean loss of the training rows, loss and accuracy of the test rows, of each worker's own model.

        And how far these are from their mean, squared.
        """
        found = torch.zeros(3, self.case.workers, device=self.device)
        for i, module in enumerate(self.modules):
            found[0, i] = nn.functional.cross_entropy(module(self.x[i]), self.y[i])
            output, targets = module(self.tests[0][i]), self.tests[1][i]
            found[1, i] = nn.functional.cross_entropy(output, targets)
            found[2, i] = (output.argmax(1) == targets).float().mean()
        return [*(float(value) for value in found.mean(1)), float(apart(self.X))]


class Vmapped(ByHand):
    """All workers in one call, tensors stacked as `torch.func.stack_module_state` does."""

    def __init__(self, case: Case, data: Data, device: torch.device) -> None:
        super().__init__(case, data, device)
        self.P, self._buffers = stack_module_state([self.module] * case.workers)
        self.P = {name: p.detach() for name, p in self.P.items()}
        self.Y, self.G = ({name: torch.zeros_like(p) for name, p in self.P.items()} for _ in range(2))
        self._gradients = vmap(grad(self._loss))
        self._workers = torch.arange(case.workers, device=device)[:, None]

    def _output(self, moved: dict[str, Tensor], kept: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.module, moved | kept, (x,))

    def _loss(self, moved: dict[str, Tensor], kept: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self._output(moved, kept, x), y)

    def _gradient(self, step: int, names: Sequence[str]) -> list[Tensor]:
        moved = {name: self.P[name] for name in names}
        kept = {name: p for name, p in self.P.items() if name not in moved}
        at = self._workers, self.drawn(step)
        return list(self._gradients(moved, kept, self.x[at], self.y[at]).values())

    def make(self) -> None:
        """See `ByHand`."""
        kind = self.case.kind
        if kind == "GradientTracking":
            now, X = self._gradient(0, self.names), list(self.P.values())
            y, last = list(self.Y.values()), list(self.G.values())
            torch._foreach_add_(y, now)
            torch._foreach_sub_(y, last)
            torch._foreach_copy_(last, now)
            torch._foreach_add_(X, y, alpha=-LR)
            mixed((*X, *y))
            return
        for step in range(self.case.steps):
            part = self.names[self.shared :] if step == 0 else self.names[: self.shared]
            names = part if kind == "DePRL" else self.names
            torch._foreach_add_([self.P[name] for name in names], self._gradient(step, names), alpha=-LR)
        if kind == "FedAvg":
            for p in self.P.values():
                p.copy_(p.mean(0))
        shared = self.names[: self.shared] if kind == "DePRL" else self.names
        mixed(self.P[name] for name in (shared if kind in ("DPSGD", "DePRL") else ()))

    def points(self) -> Tensor:
        """Where all are, (N, d)."""
        return torch.cat([p.flatten(1) for p in self.P.values()], 1)

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """See `InTurn`."""
        outputs = [vmap(self._output, in_dims=(0, None, 0))(self.P, {}, x) for x in (self.x, self.tests[0])]
        losses = [
            nn.functional.cross_entropy(output.flatten(0, 1), y.flatten())
            for output, y in zip(outputs, (self.y, self.tests[1]), strict=True)
        ]
        right = (outputs[1].argmax(2) == self.tests[1]).float().mean()
        return [*(float(loss) for loss in losses), float(right), float(sum(map(apart, self.P.values())))]
