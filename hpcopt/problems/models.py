"""The built-in networks. In each, what classifies is called ``head``, and what represents is not.

All take images (B, C, H, W) or flattened ones (B, C·H·W), of the size that they were built for.
"""

from __future__ import annotations

from itertools import pairwise
from math import isqrt, prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from hpcopt.errors import UserError
from hpcopt.math.streams import torch_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SMALLEST = {"mlp": 1, "cnn": 4, "alexnet": 16, "resnet18": 4}
"""smallest height and width of the images of each model"""


def build(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    hidden: Sequence[int] = (256, 128),
    dropout: float = 0.0,
) -> nn.Module:
    """A network with torch's own initial values; see `initialise`. Leaves the global generator as it was.

    Args:
        name: ``"mlp"``, ``"cnn"``, ``"alexnet"`` or ``"resnet18"``.
        input_shape: (C, H, W) of the images.
        classes: the number of outputs.
        hidden: mlp: widths of the hidden layers; the last layer is the head.
        dropout: cnn, alexnet: the probability of dropout before the head.

    Raises:
        UserError: no such model, or the images are too small for it.
    """
    if name not in SMALLEST:
        raise UserError(f'problem.model = "{name}": allowed are {", ".join(SMALLEST)}')
    least = SMALLEST[name]
    if min(input_shape[1:]) < least:
        raise UserError(
            f'problem.model = "{name}" takes images of at least {least}×{least} pixels, '
            f"the data set has {input_shape[1]}×{input_shape[2]}"
        )
    with torch.random.fork_rng(devices=[]):
        if name == "mlp":
            return MLP(input_shape, classes, hidden)
        if name == "cnn":
            return CNN(input_shape, classes, dropout)
        if name == "alexnet":
            return AlexNet(input_shape, classes, dropout)
        return ResNet18(input_shape, classes)


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of a data set's rows of that shape: C, H, W or H, W as they are, flat ones made square.

    A flat row whose length is no square becomes an image of height 1, which only the mlp takes.
    """
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    side = isqrt(prod(shape))
    return (1, side, side) if side * side == prod(shape) else (1, 1, prod(shape))


def initialise(model: nn.Module, seed: int) -> None:
    """He-normal weights N(0, 2/fan-in) and zero biases, in place, from the seed alone.

    Normalisation layers start as the identity: scale 1, shift 0.
    """
    generator = torch.Generator().manual_seed(torch_seed(seed, "initial"))
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            # drawn in float64 on the CPU, so that the start does not depend on the run's dtype or device
            normal = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
            module.weight.copy_(normal.mul_((2 / module.weight[0].numel()) ** 0.5))
            if module.bias is not None:
                module.bias.zero_()


class MLP(nn.Module):
    """Fully connected layers with ReLU, named ``body``, and a linear ``head``."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, hidden: Sequence[int]) -> None:
        """Hidden layers of the widths ``hidden``, which may be empty (softmax regression)."""
        super().__init__()
        widths = [prod(input_shape), *hidden]
        self.body = nn.Sequential()
        for before, after in pairwise(widths):
            self.body.extend([nn.Linear(before, after), nn.ReLU()])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, …) to logits (B, classes)."""
        return self.head(self.body(x.flatten(1)))


class CNN(nn.Module):
    """Two 3×3 convolutions (16, 32) with max-pooling and a layer of 128, then a linear ``head``."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, dropout: float) -> None:
        """``dropout`` is applied before the head."""
        super().__init__()
        self.input_shape = input_shape
        channels, height, width = input_shape
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(32 * (height // 4) * (width // 4), 128), nn.ReLU(), nn.Dropout(dropout)),
        )
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, …) to logits (B, classes)."""
        return self.head(self.body(x.reshape(-1, *self.input_shape)))


class AlexNet(nn.Module):
    """A small AlexNet for images of 28×28 and about: five 3×3 convolutions, ``head`` 256-128-128-classes."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, dropout: float) -> None:
        """``dropout`` is applied before the head."""
        super().__init__()
        self.input_shape = input_shape
        self.body = nn.Sequential(
            *(nn.Conv2d(input_shape[0], 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(128, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(dropout)),
        )
        self.head = nn.Sequential(
            *(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, …) to logits (B, classes)."""
        return self.head(self.body(x.reshape(-1, *self.input_shape)))


class ResNet18(nn.Module):
    """ResNet-18 for small images: a 3×3 stem without pooling, four stages of two blocks, linear ``head``."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, width: int = 64) -> None:
        """``width`` is the number of channels of the first stage; every later stage has twice as many."""
        super().__init__()
        self.input_shape = input_shape
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        for stage, (before, after) in enumerate(pairwise(widths)):
            blocks += [ResidualBlock(before, after, 1 if stage == 0 else 2), ResidualBlock(after, after, 1)]
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, …) to logits (B, classes)."""
        features = self.blocks(self.stem(x.reshape(-1, *self.input_shape)))
        return self.head(features.mean((2, 3)))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and a shortcut around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        """From ``before`` to ``after`` channels, the image shrunk by ``stride``."""
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut.extend([nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H/stride, W/stride)."""
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))
