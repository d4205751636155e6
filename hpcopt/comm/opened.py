"""The ports of a run that are open: named, counted and freed together."""

from __future__ import annotations

from typing import Protocol, TypeVar

from hpcopt.comm.ports import Counter, Reducer


class Port(Protocol):
    """What every port that has one verb offers."""

    counter: Counter

    def free(self) -> None:
        """Frees what it holds. Collective."""


P = TypeVar("P", bound=Port)


class Opened:
    """The open ports. A second one of a kind is called KIND_2, and so on.

    Args:
        reduce: is always open; its verbs are counted one by one, as "reduce.sum", …
    """

    def __init__(self, reduce: Reducer) -> None:
        self._reduce = reduce
        self._ports: dict[str, Port] = {}

    def add(self, kind: str, port: P) -> P:
        """Takes a port and gives it back."""
        number = 1 + sum(name.split("_")[0] == kind for name in self._ports)
        self._ports[kind if number == 1 else f"{kind}_{number}"] = port
        return port

    def counters(self) -> dict[str, Counter]:
        """Every counter, by name."""
        verbs = {f"reduce.{verb}": counter for verb, counter in self._reduce.counters.items()}
        return verbs | {name: port.counter for name, port in self._ports.items()}

    def free(self) -> None:
        """Frees all ports. Collective."""
        self._reduce.free()
        for port in self._ports.values():
            port.free()
