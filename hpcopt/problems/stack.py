"""Several workers' numbers in one computation (torch.vmap) in place of one after the other.

Small networks take less time than what calls them; a group of workers is called once. Every worker keeps its
own parameters, buffers and rows. Either only forward passes are mapped over the workers, and one backward
pass through all of them gives every worker's gradient, for none depends on another's parameters; or whole
gradients are mapped.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hpcopt.problems.flat_module import double_backward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from hpcopt.problems.base import Part
    from hpcopt.problems.flat_module import FlatModule

    Named = dict[str, Tensor]
    Batch = tuple[Tensor, ...]


# which way is faster is measured
warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")


class Stack:
    """A network at the points of several workers, each with buffers and rows of its own.

    Args:
        module: the network.
        loss: (forward pass, features, targets, adjustment of the logits if there is one) -> a worker's loss.
    """

    def __init__(self, module: FlatModule, loss: Callable[..., Tensor]) -> None:
        self._module, self._loss = module, loss

    def run(self, of: Callable[..., Any], named: Named, own: bool, buffers: Tensor, batch: Batch) -> Any:
        """What ``of`` gives for each worker, stacked.

        Args:
            of: (forward pass, *batch of one worker) -> tensors.
            named: parameters, (g, *shape) each; (*shape) of one model for all.
            own: which of these.
            buffers: (g, b); what passes change is changed there.
            batch: tensors (g, …).

        Raises:
            RuntimeError: an operator cannot be mapped, or draws random numbers.
        """

        def one(named: Named, kept: Named, *batch: Tensor) -> Any:
            return of(self._module.forward(named, kept), *batch)

        kept = self._module.opened(buffers)
        each = (0 if own else None, 0, *(0 for _ in batch))
        result = torch.vmap(one, in_dims=each)(named, kept, *batch)
        _put(buffers, kept)
        return result

    def losses(self, named: Named, own: bool, buffers: Tensor, batch: Batch) -> Tensor:
        """The losses of the workers, (g,); arguments as in `run`."""
        return self.run(lambda *args: self._loss(*args).reshape(()), named, own, buffers, batch)

    def gradient(
        self,
        X: Tensor,
        buffers: Tensor,
        batches: Iterable[tuple[Batch, float]],
        part: Part,
        scales: Tensor,
    ) -> list[Tensor]:
        """The gradients of several workers, by one backward pass.

        Args:
            X: (g, d), their points; or (d,) of all, and the result is the sum.
            buffers: see `run`.
            batches: the pieces of the workers' mini-batches, each with its part of them.
            part: of the parameters.
            scales: what they are multiplied by, (g,).

        Returns:
            One new tensor (g, *shape), or (*shape), for each parameter of the part.
        """
        named = {name: view.detach() for name, view in self._module.layout.views(X).items()}
        leaves = [named[name].requires_grad_() for name in self._module.names(part)]
        g: list[Tensor] = []
        with torch.enable_grad():
            for batch, fraction in batches:
                losses = self.losses(named, X.ndim > 1, buffers, batch)
                total = (losses * scales).sum()
                if not total.requires_grad:  # the part has no influence on the output
                    continue
                scaled = total if fraction == 1 else total * fraction
                # not by backward(), which would copy what comes out transposed
                found = _apart(torch.autograd.grad(scaled, leaves, materialize_grads=True))
                g = _added(g, found)
        return g or [
            torch.zeros_like(leaf.detach(), memory_format=torch.contiguous_format) for leaf in leaves
        ]

    def mapped(
        self,
        X: Tensor,
        buffers: Tensor,
        batches: Iterable[tuple[Batch, float]],
        part: Part,
        scales: Tensor,
    ) -> list[Tensor]:
        """As `gradient` at points (g, d), where each worker's is taken by itself, and these are mapped.

        Its operators are others: gradients of wide layers come as their parameters stand in memory, some
        layers are mapped only so, and convolutions are mostly slower.
        """
        views, names = self._module.layout.views(X.detach()), self._module.names(part)
        moved = {name: views.pop(name) for name in names}

        def loss(moved: Named, others: Named, kept: Named, scale: Tensor, *batch: Tensor) -> Any:
            # cloned here and not outside: torch.func forbids changing what it does not track
            every = {**dict(self._module.module.named_buffers()), **kept}
            changed = {name: value.clone() for name, value in every.items()}
            loss = self._loss(self._module.forward(moved, others, changed), *batch).reshape(())
            return loss * scale, {name: changed[name] for name in kept}

        gradient: Any = torch.vmap(torch.func.grad(loss, has_aux=True))
        g: list[Tensor] = []
        for batch, fraction in batches:
            kept = self._module.opened(buffers)
            found, kept = gradient(moved, views, kept, scales * fraction, *batch)
            _put(buffers, kept)
            g = _added(g, _apart(found[name] for name in names))
        return g

    def products(
        self, X: Tensor, V: Tensor, buffers: Tensor, batches: Iterable[tuple[Batch, float]], scales: Tensor
    ) -> Tensor:
        """Hessian-vector products of several workers, (g, d), or their sum, (d,).

        Args:
            X, V: (g, d), points and vectors; or (d,) of all.
            buffers, batches, scales: as in `gradient`, but no buffer is changed.
        """
        layout = self._module.layout
        point, direction = layout.views(X.detach()), layout.views(V.detach())
        total = torch.zeros_like(X)
        for batch, fraction in batches:

            def at(named: Named, batch: Batch = batch) -> Tensor:
                return (self.losses(named, X.ndim > 1, buffers.clone(), batch) * scales).sum()

            with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivatives
                product = double_backward(at, point, direction)
            flat = [product[name].reshape(*X.shape[:-1], -1) for name in layout.names]
            total.add_(torch.cat(flat, -1), alpha=fraction)
        return total


def _put(buffers: Tensor, kept: Named) -> None:
    """Buffers by name back to where they are one vector for each worker, (g, b)."""
    if kept:
        buffers.copy_(torch.cat([value.reshape(len(buffers), -1) for value in kept.values()], 1))


def _added(g: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    """Their sum, in place; the second ones where there is nothing yet."""
    return [g_p.add_(more_p) for g_p, more_p in zip(g, more, strict=True)] if g else more


def _apart(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each in memory of its own, so that it can be changed: gradients of sums and pieces may share theirs."""
    seen: set[int] = set()
    found = []
    for tensor in tensors:
        memory = tensor.untyped_storage().data_ptr()
        shared = 0 in tensor.stride() or memory in seen
        found.append(tensor.clone(memory_format=torch.contiguous_format) if shared else tensor)
        seen.add(memory)
    return found
