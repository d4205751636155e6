"""A problem of the user's own for tools/compare."""

from __future__ import annotations

import torch

import hpcopt


def factory(workers: int, hidden: int) -> hpcopt.Network:
    """A network of the user's own, with BatchNorm, dropout and an augmentation, on made-up rows.

    No bias before BatchNorm and not two classes: gradients that are nothing but rounding, or equal in size,
    would be selected by rounding.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, hidden, bias=False),
        torch.nn.BatchNorm1d(hidden),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(hidden, 3),
    )
    return hpcopt.Network(
        model,
        torch.nn.functional.cross_entropy,
        (x[:160], y[:160]),
        (x[160:], y[160:]),
        workers=workers,
        batch_size=4,
        private=["4.*"],
        augment=lambda rows: rows + 0.01 * torch.randn_like(rows),
        new_workers=1,
        new_worker_steps=3,
    )
