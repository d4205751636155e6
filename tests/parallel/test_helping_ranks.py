"""A rank may host no worker: every method with all workers on the last rank, where the others only help."""

import math

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm.gather import gather_rows
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.staging import Staging
from hpcopt.config import from_tables
from hpcopt.config.methods import METHODS, method_table
from hpcopt.ground.placement import Placement
from hpcopt.problems.base import Share
from hpcopt.state import Held

pytestmark = pytest.mark.mpi
N = 4
KEYS = {
    "topk": {"density": 0.3, "select": "global", "exchange": "owner"},
    "regtopk": {"density": 0.2, "exchange": "allgather"},
    "dpsgd": {"overlap": True},
}
NETWORK = {"kind": "network", "dataset": "digits", "hidden": [8]}
OBJECTIVE = {"kind": "linear_regression", "dim": 9, "rows_per_worker": 7, "batch_size": 3}


MARGINS = {"kind": "logistic", "dataset": "digits", "positive": 3}


def recipe(name):
    if method_table(name).kinds:
        return from_tables({"run": {"workers": N}, "problem": MARGINS}, "test").problem.recipe()
    keys = OBJECTIVE if name in ("allreduce_sgd", "topk", "dpsgd", "fedavg") else NETWORK
    return from_tables({"run": {"workers": N}, "problem": keys}, "test").problem.recipe()


def three_rounds(name, workers, ports_for):
    """The state's tensors, and its metrics."""
    problem = recipe(name).bind(Share(workers, N, seed=5))
    ports = ports_for(problem.initial())
    rate = {"lr": 0.05} if "lr" in method_table(name).model_fields else {}
    method = getattr(hpcopt, METHODS[name])(**rate, **KEYS.get(name, {}))
    method.prepare(problem)
    state = method.start(problem, ports)
    for _ in range(3):
        method.step(state)
        state.round += 1
    found = state.tensors(), method.metrics(state)
    assert method.model(state).shape[-1] == problem.dim
    ports.free()
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_twins_bits(comm, name):
    placement = Placement((0,) * (comm.size - 1) + (N,), comm.rank)

    def over_mpi(like):
        return MPIPorts(comm, placement, Staging(like.device), like, "ordered", False, remembered={})

    tensors, metrics = three_rounds(name, placement.here, over_mpi)
    twins, expected = three_rounds(name, range(N), lambda like: LocalPorts(N, like, ordered=True))
    assert metrics == pytest.approx(expected, rel=1e-9, nan_ok=True)
    for field, (held, tensor) in tensors.items():
        if held is not Held.REPLICATED and tensor.shape[1:] != (0,):
            rows = tensor.double().numpy()
            tensor = torch.from_numpy(
                gather_rows(comm, rows.reshape(len(rows), math.prod(rows.shape[1:])))
            ).view(-1, *rows.shape[1:])
        if twins[field][1].numel():
            assert np.array_equal(tensor.double(), twins[field][1].double()), field
