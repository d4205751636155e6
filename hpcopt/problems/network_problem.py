"""The workers' losses, gradients and Hessian-vector products of a network."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from hpcopt.errors import UserError
from hpcopt.math.fingerprint import digest, fingerprint
from hpcopt.math.flat import aligned, wave
from hpcopt.math.streams import torch_seed
from hpcopt.problems.base import Evaluation, row
from hpcopt.problems.batches import Batches
from hpcopt.problems.flat_module import FlatModule
from hpcopt.problems.labels import classes, ignored_label, log_priors
from hpcopt.problems.one_by_one import OneByOne
from hpcopt.problems.rows import pieces, read_rows, read_worker, standardised
from hpcopt.problems.trial import check_loss, check_passes, kind_of_mean, rows_to_try

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hpcopt.problems.base import Draw, Part, Place, Ready, Share
    from hpcopt.problems.data import Partition
    from hpcopt.problems.flat_module import Forward
    from hpcopt.problems.network import Network
    from hpcopt.problems.rows import Rows, WorkerRows

PIECE = 512
"""most rows that pass through the network at a time, unless its rows are coupled: bounds the memory"""


class NetworkProblem(OneByOne):
    """The workers here. One module serves them all: its parameters are views of a worker's row of X."""

    def __init__(self, share: Share, network: Network, parts: Partition, frozen: bool = False) -> None:
        """Reads the workers' rows and tries the model out on the first of them.

        Args:
            share: the workers here.
            network: what they compute; its module is copied.
            parts: which rows each of the N workers has, and more workers perhaps.
            frozen: see `FlatModule`; gradients, too, are those of the network in evaluation mode.

        Raises:
            UserError: model, loss and data do not fit together.
        """
        table, moments = network.table, (network.data.mean, network.data.std)
        all_rows = [len(rows) for rows in parts.train[: share.total]]
        # a rank without workers, too, has to know what an evaluation tells: it looks at somebody's rows
        data = [read_worker(network.data, parts, n, share) for n in share.workers or range(1)]
        self._module = FlatModule(network.model, table.private, share.dtype, share.device, frozen)
        super().__init__(share, self._module.layout, all_rows, table.weights)
        self.buffers = self._module.buffers.expand(share.n, -1).clone()
        self._start = self._module.initial
        self._objective = network.loss
        self._data = data[: share.n]
        self._decay = table.regularisation
        self._input = partial(standardised, moments=moments, dtype=share.dtype)
        self._augment = None if frozen else network.augment
        self._random = network.random
        self._forward_over_reverse: bool | None = None  # decided by the first product
        self._batches = Batches(share, self.rows.tolist(), table.batch_size)
        self._adjustments: Tensor | None = None
        self._whole, self._parts, self._ignored = False, True, ignored_label(network.loss)
        self._network = network
        self._spread = [digest([fingerprint(rows) for rows in of]) for of in (parts.train, parts.test or [])]
        self._some = read_rows(network.data.train, rows_to_try(network.data.train.labels), share)
        count = self._try_out(data, min(all_rows))
        self._tests, self._classifies = data[0].even_test is not None, count is not None
        self._test_rows = 0 if network.data.test is None else len(network.data.test)
        tests = [len(rows) for rows in (parts.test or [])[: share.total]]
        self._uneven_tests = bool(tests) and max(tests) > min(tests) + 1
        if tests:
            self.test_rows = torch.tensor(tests)[share.workers.start : share.workers.stop]
        if table.logit_adjustment:
            priors = log_priors(
                [worker.train.targets for worker in self._data], count, share.dtype, self._ignored
            )
            self._adjustments = table.logit_adjustment * priors

    def initial(self) -> Tensor:
        """The module's values, (d,)."""
        return self._start.clone()

    def batch_rows(self, i: int, draw: Draw | None) -> int:
        """How many rows worker i (from 0 here) uses in a draw."""
        return self._batches.count(i, draw)

    @property
    def fixed(self) -> dict[str, Tensor]:
        """See `Problem`."""
        return self._module.constants

    @property
    def named(self) -> list[Place]:
        """See `Problem`."""
        return self._module.named

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """See `Problem`."""
        fixed = {
            f"problem.model: {name}, which is not trained,": fingerprint(value)
            for name, value in self._module.fixed().items()
        }
        return (
            super().made_of
            | self._network.table.made_of()
            | fixed
            | {
                "the data set": self._network.data.told(),
                "which rows each worker has": self._spread[0],
                "which test rows each worker has": self._spread[1],
                "loss and output of some rows at some point": self._at_some_point(),
            }
        )

    @torch.no_grad()
    def evaluate(self, X: Tensor, buffers: Tensor | None = None) -> Evaluation:
        """Evaluation-mode loss on the workers' training rows; loss and accuracy on test rows.

        ``loss``: with regularisation, weight ω_n. ``test_loss`` (without) and, for class targets,
        ``accuracy`` in [0, 1]: of one model for all on the worker's even slice of all test rows, weight its
        number of rows; of the workers' own models on their own test rows, weight 1 where there are any.
        ``generalisation_gap``: test_loss minus the training loss without regularisation. Means by rows, too,
        where workers have different numbers of them.

        Args:
            X: (d,), one model for all workers, or (n, d), a model of each worker here.
            buffers: (b,) to use in place of the workers' own.
        """
        common, wanted = X.ndim == 1, self.measures
        tested = self._tests and wanted.test
        self._module.train(False)
        data_losses, penalties, test_losses, accuracies = torch.zeros(4, self.share.n, dtype=torch.float64)
        counts, labelled = torch.zeros(2, self.share.n, dtype=torch.int64)
        for i, data in enumerate(self._data):
            x = row(X, i)
            self._module.point(x)
            with self._module.with_buffers(self.buffers[i] if buffers is None else buffers):
                if wanted.train:
                    chosen = self._batches.select(i, wanted.draw)
                    rows = data.train if chosen is None else data.train.at(chosen)
                    data_losses[i], penalties[i] = self._measure(rows, i)[0], self._penalty(x)
                test, own = (data.even_test, None) if common else (data.own_test, i)
                if tested and test is not None:
                    counts[i], (test_losses[i], accuracies[i]) = len(test), self._measure(test, own)
                    labelled[i] = self._labelled(test.targets).sum() if self._classifies else 0
        result = Evaluation()
        if wanted.train:
            result.add("loss", data_losses + penalties, self.weights, self.by_rows())
        by_rows = None if common or not self._uneven_tests else counts
        if tested:
            result.add("test_loss", test_losses, counts if common else counts > 0, by_rows)
        if tested and wanted.train:
            gaps = test_losses - data_losses
            if common:  # so that Σ gap_n / N is the difference of the two means, which have other weights
                weights = self.weights.cpu().double()
                gaps = self.share.total * (test_losses * counts / self._test_rows - data_losses * weights)
            result.add("generalisation_gap", gaps, torch.ones(self.share.n) if common else counts > 0)
        if tested and self._classifies:
            by_rows = None if by_rows is None else labelled
            result.add("accuracy", accuracies, labelled if common else labelled > 0, by_rows)
        return result

    def _measure(self, rows: Rows, i: int | None) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy over rows of worker i (None: of all), float64 scalars; 0 if it has none."""
        loss, right, labelled = torch.zeros(3, dtype=torch.float64, device=self.share.device)
        for output, targets in self._outputs(rows, i):
            loss += self._objective(output, targets) * len(targets)
            if self._classifies:
                counts = self._labelled(targets)
                right += ((output.argmax(1) == targets) & counts).sum()
                labelled += counts.sum()
        return loss / max(1, len(rows)), right / labelled.clamp(min=1)

    def _outputs(self, rows: Rows, i: int | None) -> Iterator[tuple[Any, Tensor]]:
        """Outputs for rows, with their targets; piece by piece, unless the loss has to see all at once."""

        def output(piece: Rows) -> Any:
            return self._adjusted(self._module.module(self._input(piece.features)), i)

        if not self._whole:
            yield from ((output(piece), piece.targets) for piece in pieces(rows, PIECE))
        elif self._parts and len(rows):
            yield torch.cat([output(piece) for piece in pieces(rows, PIECE)]), rows.targets
        elif len(rows):
            yield output(rows), rows.targets

    def _labelled(self, targets: Tensor) -> Tensor:
        """Which rows have a class, (r,) bool: others are ignored by the loss, and so they are here."""
        return targets >= 0 if self._ignored is None else (targets >= 0) & (targets != self._ignored)

    @torch.no_grad()
    def _loss(self, i: int, x: Tensor, draw: Draw | None) -> Tensor:
        total = self._penalty(x)
        self._module.point(x)
        self._module.train(True)
        with self._module.with_buffers(self.buffers[i].clone()), self._seeded(i, draw):
            for piece, fraction in self._batch(i, draw):
                total = total + fraction * self._batch_loss(self._module.module, piece, i)
        return total

    def _add_gradient(
        self, i: int, x: Tensor, draw: Draw | None, scale: float, out: Tensor, ready: Ready | None = None
    ) -> None:
        if self._decay:
            out.add_(x, alpha=scale * self._decay)
        self._module.point(x)
        with self._module.accumulating("all", out):
            self._backward(i, draw, scale, ready)

    def gradient(self, i: int, x: Tensor, draw: Draw | None, part: Part = "all") -> list[Tensor]:
        """See `Problem`."""
        self.samples += self.batch_rows(i, draw)
        x = aligned(x)
        self._module.point(x)
        with self._module.accumulating(part, None):
            self._backward(i, draw, 1.0, None)
            g = self._module.gradient(part)
        return self._decayed(g, x, part)

    def _stacks(self, rows: int) -> bool:
        return rows <= PIECE and not (self._random or self.buffers.shape[1])

    def stacked_gradient(self, X: Tensor, draw: Draw, part: Part = "all") -> list[Tensor]:
        """See `Problem`."""
        self.samples += sum(self.batch_rows(i, draw) for i in range(self.share.n))
        self._module.train(True)
        batches = [rows for i in range(self.share.n) for rows, _ in self._batch(i, draw)]
        features = self._input(torch.stack([rows.features for rows in batches]))
        targets = torch.stack([rows.targets for rows in batches])
        adjustments = X.new_zeros(len(X), 1) if self._adjustments is None else self._adjustments

        def loss(forward: Forward, x: Tensor, y: Tensor, adjustment: Tensor) -> Tensor:
            return self._objective(forward(x) + adjustment, y)

        g = self._module.stacked_gradient(loss, X, (features, targets, adjustments), part)
        return self._decayed(g, X, part)

    def _decayed(self, g: list[Tensor], x: Tensor, part: Part) -> list[Tensor]:
        """g + λ x, in place."""
        if self._decay:
            for g_p, x_p in zip(g, self.layout.tensors(x, part), strict=True):
                g_p.add_(x_p, alpha=self._decay)
        return g

    def _backward(self, i: int, draw: Draw | None, scale: float, ready: Ready | None) -> None:
        """Adds scale · ∇(loss) to what accumulates."""
        self._module.train(True)
        with self._module.with_buffers(self.buffers[i]), self._seeded(i, draw):
            left = 1.0  # of the batch
            for piece, fraction in self._batch(i, draw):
                left -= fraction
                loss = self._batch_loss(self._module.module, piece, i)
                if loss.requires_grad:  # not where the part has no influence on the output
                    with self._module.telling(ready if left < 1e-9 else None):
                        (loss if scale * fraction == 1 else loss * (scale * fraction)).backward()

    def _hvp(self, i: int, x: Tensor, v: Tensor, draw: Draw | None) -> Tensor:
        if self._forward_over_reverse is None:
            try:
                product = self._product(i, x, v, draw, forward_over_reverse=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # of which NotImplementedError is a kind: an operator has no such rule
                self._forward_over_reverse = False
            else:
                self._forward_over_reverse = True
                return product
        return self._product(i, x, v, draw, self._forward_over_reverse)

    def _product(self, i: int, x: Tensor, v: Tensor, draw: Draw | None, forward_over_reverse: bool) -> Tensor:
        product = self._decay * v
        self._module.train(True)
        with self._module.with_buffers(self.buffers[i]), self._seeded(i, draw):
            for piece, fraction in self._batch(i, draw):
                loss = partial(self._batch_loss, piece=piece, i=i)
                product.add_(self._module.hvp(loss, x, v, forward_over_reverse), alpha=fraction)
        return product

    def _batch_loss(self, forward: Forward, piece: Rows, i: int | None) -> Tensor:
        features = self._input(piece.features)
        if self._augment is not None:
            features = self._augment(features)
        return self._objective(self._adjusted(forward(features), i), piece.targets)

    def _adjusted(self, output: Tensor, i: int | None) -> Tensor:
        """Logits as worker i sees them; i = None: as they are."""
        return output if self._adjustments is None or i is None else output + self._adjustments[i]

    def _batch(self, i: int, draw: Draw | None) -> Iterator[tuple[Rows, float]]:
        """The mini-batch of a draw in pieces, each with its part of the batch."""
        rows, chosen = self._data[i].train, self._batches.select(i, draw)
        batch = rows if chosen is None else rows.at(chosen)
        size = len(batch) if self._module.couples_rows or self._whole else PIECE
        for piece in pieces(batch, size):
            yield piece, len(piece) / len(batch)

    def _penalty(self, x: Tensor) -> Tensor:
        return 0.5 * self._decay * (x @ x)

    @contextmanager
    def _seeded(self, i: int | None, draw: Draw | None) -> Iterator[None]:
        """Torch's generators seeded by worker (None: the first of all) and draw, and left as they were."""
        if not self._random:
            yield
            return
        at = () if draw is None else (draw.round, draw.step)
        worker = 0 if i is None else self.share.workers[i]
        seed = torch_seed(self.share.seed, "training", worker, *at)
        device = self.share.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":  # not torch.manual_seed, which would seed devices that are not restored
                index = torch.cuda.current_device() if device.index is None else device.index
                torch.cuda.default_generators[index].manual_seed(seed)
            yield

    def _try_out(self, data: list[WorkerRows], fewest: int) -> int | None:
        """Training passes over the smallest mini-batch of any worker; how many classes there are, if any.

        Raises:
            UserError: a pass fails, gives no number, or leaves behind what it must not.
        """
        size = fewest if self._batches.size == "full" else min(fewest, self._batches.size)
        rows = data[0].train.at(slice(0, min(size, PIECE)))
        self._module.train(True)
        try:
            output, loss = self._pass(rows)
            check_loss(loss)
            others = {"problem.loss": self._objective, "problem.augment": self._augment}
            once = lambda: float(self._pass(rows)[1].detach())  # noqa: E731
            check_passes(once, self.share.dtype, self._module.module, others, self._module.kept)
            self._whole, self._parts = self._mean_of() == "whole", isinstance(output, Tensor)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"problem.model, loss and data do not fit together: a batch of {len(rows)} rows, "
                f"features {tuple(rows.features.shape)}, targets {tuple(rows.targets.shape)} "
                f"{rows.targets.dtype}: {error}"
            ) from error
        return classes(output, [worker.train.targets for worker in data], self._ignored)

    def _pass(self, rows: Rows) -> tuple[Any, Any]:
        """Output and loss of a training pass that changes no buffer."""
        seen: list[Any] = []

        def forward(features: Tensor) -> Tensor:
            seen.append(self._module.module(features))
            return seen[-1]

        buffers = self._module.buffers.clone()
        with self._module.with_buffers(buffers), self._seeded(None, None), torch.enable_grad():
            loss = self._batch_loss(forward, rows, None)
        return seen[-1], loss

    def _mean_of(self) -> Literal["rows", "whole"]:
        """What the loss is a mean of; near the start, for there all rows may have the same output."""
        x = self._start + wave(self._start)
        return kind_of_mean(lambda part: self._tried(x, part)[0], len(self._some), self.share.dtype)

    def _at_some_point(self) -> list[float]:
        """The loss there, and the norm of the output where it is a tensor."""
        try:
            loss, output = self._tried(wave(self._start), slice(None))
        except (RuntimeError, ValueError):  # some models know which parameters make sense
            return []
        return [loss, float(output.detach().double().norm())] if isinstance(output, Tensor) else [loss]

    @torch.no_grad()
    def _tried(self, x: Tensor, part: slice) -> tuple[float, Any]:
        """Loss and output of some rows at x in evaluation mode; the module keeps the start."""
        rows = self._some.at(part)
        self._module.point(x)
        self._module.train(False)
        try:
            with self._module.with_buffers(self._module.buffers.clone()), self._seeded(None, None):
                output = self._module.module(self._input(rows.features))
                return float(self._objective(output, rows.targets)), output
        finally:
            self._module.point(self._start)
