"""A torch module whose parameters and buffers are wherever flat vectors of them are, without copies."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from hpcopt.errors import UserError
from hpcopt.math.flat import Layout
from hpcopt.problems.base import Place
from hpcopt.problems.trial import COUNTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from hpcopt.problems.base import Part, Ready

    Forward = Callable[[Tensor], Tensor]

NOTHING = nullcontext()


@dataclass(frozen=True)
class _Buffer:
    path: str
    owner: nn.Module
    name: str
    shape: torch.Size


class FlatModule:
    """One module that stands for many workers' models in turn.

    Attributes:
        module: a copy of the user's module.
        layout: of its parameters that require a gradient; the others stay as they are (frozen layers).
        initial: their values in the user's module, (d,).
        buffers: the values of its floating-point buffers (BatchNorm's running statistics), (b,); integer and
            non-persistent buffers do not belong to a worker, and must not change.
        kept: the names of those that do.
        couples_rows: whether a row's output may depend on the batch's other rows in training (BatchNorm).
        named: where everything that the module's state_dict holds stands, in its order.
        constants: what of that is neither a parameter of the layout nor a kept buffer: dtype -> values (k,).
    """

    def __init__(
        self,
        module: nn.Module,
        private: Sequence[str],
        dtype: torch.dtype,
        device: torch.device,
        frozen: bool = False,
    ) -> None:
        """Copies the module.

        Args:
            module: any module, which is left as it is.
            private: name patterns of the parameters that come last in the vector.
            dtype: of parameters and buffers.
            device: where they are.
            frozen: always in evaluation mode: no dropout, and buffers keep their values.

        Raises:
            UserError: nothing in the module can be trained, something in it is complex or not yet there, or
                a BatchNorm layer averages without momentum.
        """
        _check_tensors(module)
        self.module = copy.deepcopy(module).to(device, dtype)
        self._frozen = frozen
        self._parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise UserError("problem.model has no parameters that require a gradient: nothing to optimise")
        self.layout = Layout.of(((n, p.shape) for n, p in self._parameters.items()), private)
        self.initial = torch.cat([self._parameters[n].detach().ravel() for n in self.layout.names])
        self._buffers = _float_buffers(self.module)
        values = [getattr(buffer.owner, buffer.name).ravel() for buffer in self._buffers]
        self.buffers = torch.cat(values) if values else torch.empty(0, dtype=dtype, device=device)
        self.kept = {buffer.path for buffer in self._buffers}
        self.named, self.constants = self._places()
        self._again = _other_places(self.module)
        self._views: list[Tensor] = []
        self._x: Tensor | None = None
        self._part: Part = "all"  # that requires a gradient
        self.couples_rows = not frozen and any(isinstance(m, _NormBase) for m in self.module.modules())
        self._check_momentum()

    def fixed(self) -> dict[str, Tensor]:
        """What stays as it is: frozen parameters, and buffers that belong to no worker."""
        frozen = {n: p for n, p in self.module.named_parameters() if n not in self._parameters}
        buffers = {n: b for n, b in self.module.named_buffers() if n not in self.kept}
        return frozen | {n: b for n, b in buffers.items() if not n.endswith(COUNTED)}

    def _places(self) -> tuple[list[Place], dict[str, Tensor]]:
        """`named` and `constants`; two names of one tensor (tied parameters) have one place."""
        starts = accumulate(self.layout.sizes, initial=0)
        at: dict[int, tuple[str, int]] = {
            id(self._parameters[name]): ("model", start)
            for name, start in zip(self.layout.names, starts, strict=False)
        }
        start = 0
        for buffer in self._buffers:
            at[id(getattr(buffer.owner, buffer.name))] = ("buffers", start)
            start += buffer.shape.numel()
        places: list[Place] = []
        constants: dict[str, list[Tensor]] = {}
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if not isinstance(tensor, torch.Tensor):  # what a module keeps in its own way
                continue
            if id(tensor) not in at:
                kind = str(tensor.dtype).removeprefix("torch.")
                earlier = constants.setdefault(kind, [])
                at[id(tensor)] = (kind, sum(one.numel() for one in earlier))
                earlier.append(tensor.detach().ravel())
            places.append(Place(name, *at[id(tensor)], tuple(tensor.shape)))
        return places, {kind: torch.cat(tensors) for kind, tensors in constants.items()}

    def point(self, x: Tensor) -> None:
        """Makes x (d,) the module's parameters: they are views of x from now on."""
        if self._x is not None and x.data_ptr() == self._x.data_ptr():
            return  # as they are since the last step
        for name, view in self.layout.views(x.detach()).items():
            self._parameters[name].data = view
        self._x = x

    def train(self, mode: bool) -> None:
        """Training or evaluation mode, as in torch."""
        mode = mode and not self._frozen
        if self.module.training != mode:
            self.module.train(mode)

    def with_buffers(self, values: Tensor) -> AbstractContextManager[None]:
        """Within, ``values`` (b,) are the module's buffers; what a forward pass changes is changed there."""
        return self._with_buffers(values) if self._buffers else NOTHING

    @contextmanager
    def _with_buffers(self, values: Tensor) -> Iterator[None]:
        self._views = views = [
            v.view(b.shape) for v, b in zip(self._split(values), self._buffers, strict=True)
        ]
        self.reopen()
        yield
        for buffer, view in zip(self._buffers, views, strict=True):
            now = getattr(buffer.owner, buffer.name)
            if now is not view:  # a module that assigns a new tensor instead of changing the old one
                view.copy_(now.detach())

    def reopen(self) -> None:
        """Within `with_buffers`, as at its beginning: a module may have assigned new tensors."""
        for buffer, view in zip(self._buffers, self._views, strict=True):
            setattr(buffer.owner, buffer.name, view)

    def opened(self, values: Tensor) -> dict[str, Tensor]:
        """Buffers of several workers, (g, b), by name, (g, *shape) each; new memory."""
        copies = [piece.clone(memory_format=torch.contiguous_format) for piece in self._split(values)]
        return {
            buffer.path: copy.view(len(values), *buffer.shape)
            for copy, buffer in zip(copies, self._buffers, strict=True)
        }

    def forward(self, *named: dict[str, Tensor]) -> Forward:
        """A pass of the module with these parameters and buffers, by name, in place of its own."""
        state = {name: value for some in named for name, value in some.items()}
        state |= {other: state[name] for other, name in self._again.items() if name in state}
        # torch would tie a layer that is used twice to itself, and not give back what it had
        return lambda features: functional_call(self.module, state, (features,), tie_weights=False)

    @contextmanager
    def accumulating(self, part: Part, out: Tensor | None) -> Iterator[None]:
        """Within, ``backward`` adds the gradient of ``part`` to its place in ``out`` (d,), and no other.

        Without ``out`` it makes new tensors, for `gradient`, which saves two passes through memory.
        """
        names = self.names(part)
        if part != self._part:
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(name in names)
            self._part = part
        if out is not None:
            views = self.layout.views(out)
            for name in names:
                self._parameters[name].grad = views[name]
        try:
            with torch.enable_grad():
                yield
        finally:
            for name in names:
                self._parameters[name].grad = None  # else out would live as long as the module

    def gradient(self, part: Part) -> list[Tensor]:
        """What ``backward`` made within `accumulating`, where this is to be called; zeros where nothing."""
        parameters = [self._parameters[name] for name in self.names(part)]
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

    @contextmanager
    def telling(self, ready: Ready | None) -> Iterator[None]:
        """Within, ``backward`` calls ``ready`` with the range of each parameter whose gradient is final.

        Only for a backward pass through all of the module that uses each parameter's gradient once.
        """
        hooks = []
        if ready is not None:
            at = 0
            for name, size in zip(self.layout.names, self.layout.sizes, strict=True):
                hook = _tell(ready, at, at + size)
                hooks.append(self._parameters[name].register_post_accumulate_grad_hook(hook))
                at += size
        try:
            yield
        finally:
            for hook_handle in hooks:
                hook_handle.remove()

    def hvp(
        self, loss: Callable[[Forward], Tensor], x: Tensor, v: Tensor, forward_over_reverse: bool
    ) -> Tensor:
        """∇²(loss)(x) v, (d,). Changes no buffer.

        Args:
            loss: from the forward pass (a function of the features) to a scalar.
            x: (d,).
            v: (d,).
            forward_over_reverse: leaner, but not all operators support it; otherwise double backward.

        Raises:
            RuntimeError: an operator does not support it.
        """

        def at(parameters: dict[str, Tensor]) -> Tensor:
            # cloned here and not outside: torch.func forbids changing what it does not track
            buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
            return loss(self.forward(parameters, buffers))

        point, direction = self.layout.views(x.detach()), self.layout.views(v.detach())
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivatives
            if forward_over_reverse:
                product = torch.func.jvp(torch.func.grad(at), (point,), (direction,))[1]
            else:
                product = double_backward(at, point, direction)
        return torch.cat([product[name].ravel() for name in self.layout.names])

    def names(self, part: Part) -> tuple[str, ...]:
        """Of the parameters of a part, as `Layout.tensors`."""
        return self.layout.names[self.layout.chosen(part)]

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Of (…, b)."""
        return values.split([buffer.shape.numel() for buffer in self._buffers], -1) if self._buffers else ()

    def _check_momentum(self) -> None:
        for name, module in self.module.named_modules():
            if isinstance(module, _NormBase) and module.track_running_stats and module.momentum is None:
                raise UserError(
                    f"problem.model: {name} has momentum=None, which averages over an integer count of "
                    "batches that is not kept per worker; give it a momentum such as 0.1"
                )


def _check_tensors(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise UserError(
                f"problem.model: {name} has no values yet; a lazy module is to be called once, with a batch, "
                "before it is given away"
            )
        if tensor.is_complex():
            raise UserError(
                f"problem.model: {name} is complex, but a model is a vector of real numbers; keep real and "
                "imaginary parts (torch.view_as_complex makes them complex within forward)"
            )


def _tell(ready: Ready, start: int, stop: int) -> Callable[[Tensor], None]:
    return lambda _: ready(start, stop)


def _float_buffers(module: nn.Module) -> list[_Buffer]:
    """The floating-point buffers that a state_dict would hold, in its order."""
    persistent = module.state_dict().keys()
    found = []
    for path, buffer in module.named_buffers():
        if path in persistent and buffer.is_floating_point():
            owner, _, name = path.rpartition(".")
            found.append(_Buffer(path, module.get_submodule(owner), name, buffer.shape))
    return found


def _other_places(module: nn.Module) -> dict[str, str]:
    """Where else tied tensors stand -> their first place; a layer that is used twice is one place."""
    first: dict[int, str] = {}
    again, seen = {}, set()
    parameters = module.named_parameters(remove_duplicate=False)
    for path, tensor in (*parameters, *module.named_buffers(remove_duplicate=False)):
        owner, _, name = path.rpartition(".")
        place = id(module.get_submodule(owner)), name
        if place not in seen and first.setdefault(id(tensor), path) != path:
            again[path] = first[id(tensor)]
        seen.add(place)
    return again


def double_backward(
    at: Callable[[dict[str, Tensor]], Tensor], point: dict[str, Tensor], direction: dict[str, Tensor]
) -> dict[str, Tensor]:
    """∇²(at)(point) direction, by name, of a scalar function of named tensors."""
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in point.items()}
        inputs = list(leaves.values())
        first = torch.autograd.grad(at(leaves), inputs, create_graph=True, materialize_grads=True)
        inner = sum(((g * direction[name]).sum() for g, name in zip(first, leaves, strict=True)), start=0)
        if not (isinstance(inner, torch.Tensor) and inner.requires_grad):  # the loss is linear
            return {name: torch.zeros_like(value) for name, value in point.items()}
        second = torch.autograd.grad(inner, inputs, materialize_grads=True)
    return dict(zip(leaves, second, strict=True))
