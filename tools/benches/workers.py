"""`tools/bench workers`: many workers on one rank, against bare torch in turn and against torch.func.vmap.

    workers.py [quick] [NAME …]    quick: without ResNet-18; NAME: only cases whose names begin so

Seconds per round of `hpcopt.run` (its own clock, after as many rounds to warm up), and of the same rounds
written by hand: a module for each worker, one after the other, and all in one call of torch.func.vmap.
Same start, rows, mini-batches, steps and averages; all end at the same point, which is checked first. The
loops by hand have their mini-batches drawn beforehand. One thread, on the device at hand.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

import hpcopt
from tools.benches.common import ratios, spread
from tools.benches.workers_by_hand import LR, SEED, Case, Data, InTurn, Vmapped

REPEATS = 5
VMAP_AIM, TURN_AIM = 1.5, 1.2
CHECKED = 3
"""rounds after which all have to be at the same point"""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

SMALL: dict[str, Any] = {
    "model": "mlp",
    "image": (1, 14, 14),
    "hidden": (48,),
    "workers": 96,
    "rows": 64,
    "batch": 8,
    "rounds": 10,
}
CASES = (
    Case("dpsgd", lambda: hpcopt.DPSGD(lr=LR, local_steps=5), steps=5, **SMALL),
    Case("deprl", lambda: hpcopt.DePRL(lr=LR, head_steps=1, body_steps=4), steps=5, **SMALL),
    Case("fedavg", lambda: hpcopt.FedAvg(lr=LR, local_steps=5), steps=5, **SMALL),
    Case("local", lambda: hpcopt.Local(lr=LR, local_steps=5), steps=5, **SMALL),
    Case("gradient_tracking", lambda: hpcopt.GradientTracking(lr=LR), steps=1, **SMALL),
    Case(
        *("fedavg mlp", lambda: hpcopt.FedAvg(lr=LR, local_epochs=1), "mlp", (1, 28, 28)),
        workers=100,
        rows=50,
        batch=10,
        steps=5,
        rounds=5,
        hidden=(64,),
    ),
    Case(
        *("fedavg cnn", lambda: hpcopt.FedAvg(lr=LR, local_epochs=1), "cnn", (1, 28, 28)),
        workers=20,
        rows=50,
        batch=10,
        steps=5,
        rounds=2,
    ),
    Case(
        *("dpsgd resnet18", lambda: hpcopt.DPSGD(lr=LR, local_steps=1), "resnet18", (3, 32, 32)),
        workers=4,
        rows=64,
        batch=32,
        steps=1,
        rounds=1,
        stacks=False,
    ),
)
EVALUATED = (
    Case("evaluation mlp", hpcopt.Local, **SMALL | {"workers": 128, "rows": 100, "steps": 0}),
    Case(
        *("evaluation cnn", hpcopt.Local, "cnn", (1, 14, 14)),
        workers=128,
        rows=60,
        batch=10,
        steps=0,
        rounds=2,
    ),
)


def clocked(call: Callable[[], object], times: int) -> float:
    """Seconds of one of so many calls."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)
    start = time.perf_counter()
    for _ in range(times):
        call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)
    return (time.perf_counter() - start) / times


def ours(case: Case, recipe: hpcopt.Network) -> float:
    """Seconds of a round in a run of ours, or of an evaluation."""
    evaluates = not case.steps
    wanted = ["train", "test"] if evaluates else []
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        keys: dict[str, Any] = {"evaluate_every": 1 if evaluates else case.rounds, "evaluate": wanted}
        keys |= {"seed": SEED, "dtype": "float32", "device": DEVICE.type, "rounds": 2 * case.rounds}
        method = hpcopt.Local(lr=LR, local_steps=1) if evaluates else case.method()
        hpcopt.run(method, recipe, comm=MPI.COMM_SELF, out=out, **keys)
        tree: Any = hpcopt.load(out)
    if evaluates:
        seconds = tree["phases/seconds"].sel(phase="evaluation").values
        return float(seconds[-1] - seconds[-1 - case.rounds]) / case.rounds
    seconds = tree["metrics/seconds"].values
    return float(seconds[-1] - seconds[-2]) / case.rounds


def check(case: Case, recipe: hpcopt.Network, loops: dict[str, Any]) -> None:
    """All end at the same point, or measure the same."""
    if not case.steps:
        keys: dict[str, Any] = {"evaluate": ["train", "test"], "dtype": "float32", "seed": SEED}
        tree = hpcopt.simulate(hpcopt.Local(), recipe, 0, **keys)
        want = [float(tree[f"metrics/{name}"][0]) for name in ("loss", "test_loss", "accuracy", "consensus")]
        for name, loop in loops.items():
            torch.testing.assert_close(loop.evaluate(), want, rtol=1e-4, atol=1e-4, msg=name)
        return
    method = case.method()
    keys = {"evaluate": [], "dtype": "float32", "seed": SEED, "device": DEVICE.type, "return_state": True}
    _, state = hpcopt.simulate(method, recipe, CHECKED, **keys)
    for name, loop in loops.items():
        for _ in range(CHECKED):
            loop.round()
        torch.testing.assert_close(loop.points(), method.model(state), rtol=0, atol=1e-3, msg=name)


def compare(case: Case) -> None:
    """Prints seconds of a round, and ours in units of the others'."""
    data = Data(case)
    recipe, loops = data.recipe(case), {"in turn": InTurn(case, data, DEVICE)}
    if case.stacks:
        loops["vmap"] = Vmapped(case, data, DEVICE)  # type: ignore[assignment]
    check(case, recipe, loops)
    calls = {name: loop.round if case.steps else loop.evaluate for name, loop in loops.items()}
    measures: dict[str, Callable[[], float]] = {"hpcopt": lambda: ours(case, recipe)}
    for name, call in calls.items():
        measures[name] = lambda call=call: clocked(call, case.rounds)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in measures}
    for repeat in range(-1, REPEATS):
        for name in measures if repeat % 2 else reversed(list(measures)):
            took = measures[name]()
            if repeat >= 0:
                times[name].append(1000 * took)
    what = "an evaluation" if not case.steps else f"a round of {case.steps} steps"
    shape = f"{case.workers} workers, {case.model} {'×'.join(map(str, case.image))}, {case.rows} rows each"
    print(f"  {case.name}: {shape}, batches of {case.batch}; ms for {what}")
    print("    " + "; ".join(f"{name} {spread(of, 2)}" for name, of in times.items()))
    aims = {"vmap": VMAP_AIM} if case.stacks else {"in turn": TURN_AIM}
    for name in loops:
        aim = f"; aim: at most {aims[name]}" if name in aims else ""
        print(f"    hpcopt / {name} {ratios(times['hpcopt'], times[name])}{aim}", flush=True)


def main() -> None:
    """See above."""
    torch.set_num_threads(1)
    os.environ["HPCOPT_PROGRESS"] = "off"
    wanted = sys.argv[1:]
    quick = "quick" in wanted
    names = tuple(word for word in wanted if word != "quick") or ("",)
    name = torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "CPU"
    print(f"one rank on {name}, float32, one thread, medians of {REPEATS} [min, max]")
    for case in (*CASES, *EVALUATED):
        if case.name.startswith(names) and not (quick and case.model == "resnet18"):
            compare(case)


if __name__ == "__main__":
    main()
