"""hpcopt: communication-efficient distributed optimisation as MPI jobs.

Importing this imports neither torch nor MPI; the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcopt.errors import HpcoptError, Interrupted, NotFinite, NothingToResume, UserError
    from hpcopt.methods.allreduce_sgd import AllreduceSGD
    from hpcopt.methods.deprl import DePRL
    from hpcopt.methods.fedavg import FedAvg
    from hpcopt.methods.gossip import DPSGD, Local
    from hpcopt.methods.gradient_tracking import GradientTracking
    from hpcopt.methods.powersgd import PowerSGD
    from hpcopt.methods.regtopk import RegTopK
    from hpcopt.methods.sparsified import RandomK, TopK
    from hpcopt.problems.linear_regression import LinearRegression
    from hpcopt.problems.network import Network
    from hpcopt.problems.objective import Objective
    from hpcopt.problems.quadratic import Quadratic
    from hpcopt.problems.toy_logistic import ToyLogistic
    from hpcopt.report.export import export
    from hpcopt.report.load import load
    from hpcopt.run import resume, run

_HOMES = {
    "run": "hpcopt.run",
    "resume": "hpcopt.run",
    "load": "hpcopt.report.load",
    "export": "hpcopt.report.export",
    "AllreduceSGD": "hpcopt.methods.allreduce_sgd",
    "DePRL": "hpcopt.methods.deprl",
    "DPSGD": "hpcopt.methods.gossip",
    "FedAvg": "hpcopt.methods.fedavg",
    "GradientTracking": "hpcopt.methods.gradient_tracking",
    "Local": "hpcopt.methods.gossip",
    "RandomK": "hpcopt.methods.sparsified",
    "RegTopK": "hpcopt.methods.regtopk",
    "TopK": "hpcopt.methods.sparsified",
    "PowerSGD": "hpcopt.methods.powersgd",
    "LinearRegression": "hpcopt.problems.linear_regression",
    "Network": "hpcopt.problems.network",
    "Objective": "hpcopt.problems.objective",
    "Quadratic": "hpcopt.problems.quadratic",
    "ToyLogistic": "hpcopt.problems.toy_logistic",
    "HpcoptError": "hpcopt.errors",
    "Interrupted": "hpcopt.errors",
    "NotFinite": "hpcopt.errors",
    "NothingToResume": "hpcopt.errors",
    "UserError": "hpcopt.errors",
}

__all__ = [
    "DPSGD",
    "AllreduceSGD",
    "DePRL",
    "FedAvg",
    "GradientTracking",
    "HpcoptError",
    "Interrupted",
    "LinearRegression",
    "Local",
    "Network",
    "NotFinite",
    "NothingToResume",
    "Objective",
    "PowerSGD",
    "Quadratic",
    "RandomK",
    "RegTopK",
    "TopK",
    "ToyLogistic",
    "UserError",
    "export",
    "load",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hpcopt' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # so that the module of the same name (hpcopt.run) does not hide it later
    return value


def __dir__() -> list[str]:
    return __all__
