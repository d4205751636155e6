"""Problems of the tests' own, named in configs as ``tests.parallel.factories:NAME``."""

import torch

import hpcopt


def batchnorm(workers):
    """A small network with BatchNorm on 48 made-up rows."""
    torch.manual_seed(0)
    x = torch.randn(60, 6)
    y = (x.sum(1) > 0).long()
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Linear(5, 2)
    )
    loss = torch.nn.functional.cross_entropy
    data = (x[:48], y[:48]), (x[48:], y[48:])
    return hpcopt.Network(
        model, loss, *data, workers=workers, batch_size=4, private=["3.*"], new_workers=1, new_worker_steps=20
    )
