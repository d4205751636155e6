"""The plan of a sweep: one config, and cases that are listed or that the values of some keys make."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcopt.config.io import RunConfig, from_tables, override, parse
from hpcopt.config.values import MOST, axis
from hpcopt.errors import UserError
from hpcopt.ground.words import counted

MAX_NAME = 100
"""characters; a file system takes 255 bytes, and a name gets endings"""
FILE = "sweep.toml"


@dataclass(frozen=True)
class Case:
    """One run of a sweep.

    Attributes:
        name: its directory's, unique in the sweep.
        settings: what it changes of the config, each "TABLE.KEY=VALUE".
    """

    name: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a sweep runs.

    Attributes:
        source: the config file, for messages.
        tables: its tables, with what all cases change of them.
        over: as typed, "TABLE.KEY=VALUES"; empty where cases are listed, of which there may be more later.
        zipped: the keys' values are paired; else every combination is a case.
        cases: in the order in which they are begun.
    """

    source: str
    tables: dict[str, Any]
    over: tuple[str, ...]
    zipped: bool
    cases: tuple[Case, ...]

    def config(self, case: Case, out: Path) -> RunConfig:
        """A case's config, checked; raises `UserError`."""
        tables = copy.deepcopy(self.tables)
        for setting in case.settings:
            override(tables, setting)
        if isinstance(tables.setdefault("run", {}), dict):
            tables["run"]["out"] = str(out)
        return from_tables(tables, f"{self.source}, case {case.name}")

    def check(self, ranks: int) -> None:
        """Checks every case.

        Args:
            ranks: of each run.

        Raises:
            UserError: the first case that is wrong.
        """
        stops = set()
        for case in self.cases:
            config = self.config(case, Path(case.name))
            stops.add(config.run.stop_signal)
            told = f"each case has {counted(ranks, 'rank')} (--ranks-each)"
            if misfit := config.run.misfit(ranks, told):
                raise UserError(f"{self.source}, case {case.name}: [run] {misfit}")
        if len(stops) > 1:
            raise UserError(f"{self.source}: {several_signals(stops)}")

    @property
    def stop_signal(self) -> str:
        """On which the job stops; raises `UserError` if the first case is wrong."""
        return self.config(self.cases[0], Path(self.cases[0].name)).run.stop_signal

    def written(self) -> dict[str, Any]:
        """What sweep.toml has."""
        cases = [{"name": case.name, "settings": list(case.settings)} for case in self.cases]
        plan = {"config": self.source, "over": list(self.over), "zip": self.zipped}
        return plan | {"tables": self.tables, "cases": cases}

    def differences(self, begun: dict[str, Any]) -> list[str]:
        """What a directory's sweep.toml has otherwise, a line each; the config file may have moved."""
        found = [
            f"{option}: {json.dumps(now)}, begun with {json.dumps(begun.get(key))}"
            for option, key, now in (("--over", "over", list(self.over)), ("--zip", "zip", self.zipped))
            if begun.get(key) != now
        ]
        then, here = _flat(begun.get("tables", {})), _flat(self.tables)
        if not self.over:
            then |= {f"case {case['name']}": case["settings"] for case in begun.get("cases", [])}
            here |= {f"case {case.name}": list(case.settings) for case in self.cases}
            here = {key: value for key, value in here.items() if key in then or not key.startswith("case ")}
        return found + [
            f"{key} = {_shown(here.get(key))}, begun with {_shown(then.get(key))}"
            for key in sorted(then.keys() | here.keys())
            if then.get(key) != here.get(key)
        ]


def several_signals(names: Iterable[str]) -> str:
    """That one job is to stop on several signals, in words."""
    return f"run.stop_signal = {', '.join(sorted(names))}: one job stops on one signal, in all of its cases"


def plan(
    config: Path,
    over: Sequence[str],
    overrides: Sequence[str] = (),
    zipped: bool = False,
    cases: Path | None = None,
) -> Plan:
    """The plan of a sweep; its cases are not checked yet.

    Args:
        config: the TOML file.
        over: each "TABLE.KEY=V1,V2,…", where V may be a range of whole numbers FIRST:END or FIRST:END:STEP,
            without the end.
        overrides: what all cases change, "TABLE.KEY=VALUE".
        zipped: pair the values; else every combination.
        cases: a TOML file that lists them instead, see `listed`.

    Raises:
        UserError: a value is missing, keys to be paired have different numbers of values, a key is named
            twice, two cases are the same, or there are more than `MOST`.
    """
    if cases is not None and (over or zipped):
        raise UserError(f"--cases {cases}: lists the cases, so that there is nothing for --over and --zip")
    tables = parse(config)
    for setting in overrides:
        override(tables, setting)
    found = combined(over, zipped) if cases is None else listed(cases)
    return Plan(str(config), tables, tuple(over), zipped, found)


def listed(file: Path) -> tuple[Case, ...]:
    """The cases of a TOML file: a table for each, with what it changes of the config.

    >>> [small]
    ... method.lr = 0.01
    ... run.seed = 3

    Raises:
        UserError: it is none, two cases are the same, or a name is no directory's.
    """
    found = []
    for name, tables in parse(file).items():
        if len(name) > MAX_NAME or name != _plain(name) or name.startswith("."):
            raise UserError(
                f"{file}: [{name}]: a case's name has at most {MAX_NAME} letters, digits and signs of _.+,=-"
            )
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            raise UserError(f"{file}: [{name}]: must have lines TABLE.KEY = VALUE, like method.lr = 0.1")
        keys = _flat(tables).items()
        found.append(Case(name, tuple(f"{key}={_toml(value)}" for key, value in keys)))
    _differ([case.settings for case in found], str(file))
    if not 0 < len(found) <= MOST:
        raise UserError(f"{file}: has {len(found)} cases, allowed are 1 to {MOST}")
    return tuple(found)


def combined(over: Sequence[str], zipped: bool, option: str = "--over") -> tuple[Case, ...]:
    """The cases that several keys make; raises as `plan`."""
    keys, columns = [], list[list[str] | range]()
    if not over:
        raise UserError(f"{option}: is missing, for example {option} run.seed=0:5")
    for text in over:
        key, values = axis(text, option)
        if key in keys:
            raise UserError(f"{option} {key}: is there twice; put all its values into one")
        keys.append(key)
        columns.append(values)
    sizes = [len(values) for values in columns]
    if zipped and len(set(sizes)) > 1:
        told = ", ".join(f"{key} has {size}" for key, size in zip(keys, sizes, strict=True))
        raise UserError(f"--zip: needs as many values of each key, but {told}")
    count = sizes[0] if zipped else math.prod(sizes)
    if count > MOST:
        raise UserError(f"{option}: makes {count} cases, and {MOST} are allowed")
    rows = zip(*columns, strict=True) if zipped else itertools.product(*columns)
    settings = [tuple(f"{key}={value}" for key, value in zip(keys, row, strict=True)) for row in rows]
    _differ(settings, option)
    return tuple(itertools.starmap(Case, zip(_names(keys, settings), settings, strict=True)))


def _differ(settings: Sequence[tuple[str, ...]], option: str) -> None:
    """Raises `UserError` where two cases set the same values, however written."""
    seen = dict[str, tuple[str, ...]]()
    for one in settings:
        tables: dict[str, Any] = {}
        for setting in one:
            override(tables, setting)
        other = seen.setdefault(repr(tables), one)
        if other is not one:
            raise UserError(f"{option}: two cases are the same: {', '.join(other)} and {', '.join(one)}")


def _names(keys: Sequence[str], settings: Sequence[tuple[str, ...]]) -> list[str]:
    """Of the cases: safe in a file system, unique, and as short as tells them apart."""
    last = Counter(key.partition(".")[2] for key in keys)

    def label(key: str) -> str:
        short = key.partition(".")[2]
        return key if last[short] > 1 else short

    def name(one: Iterable[str]) -> str:
        pairs = (setting.split("=", 1) for setting in one)
        return ",".join(f"{label(key)}={_plain(value)}" for key, value in pairs)

    names = [name(one) for one in settings]
    often = Counter(names)
    return [
        text
        if len(text) <= MAX_NAME and often[text] == 1
        else f"{text[: MAX_NAME - 13]}-{hashlib.sha256(repr(one).encode()).hexdigest()[:12]}"
        for text, one in zip(names, settings, strict=True)
    ]


def _plain(value: str) -> str:
    """A value without quotes, and without what is not plain in a file's name."""
    value = value[1:-1] if value[:1] == value[-1:] and value[:1] in ("'", '"') else value
    return re.sub(r"[^\w.+,=-]", "_", value, flags=re.ASCII)


def _flat(tables: Any) -> dict[str, Any]:
    if not isinstance(tables, dict):
        return {"tables": tables}
    return {
        f"{name}.{key}": value
        for name, table in tables.items()
        for key, value in (table.items() if isinstance(table, dict) else [("", table)])
    }


def _shown(value: Any) -> str:
    return "nothing" if value is None else _toml(value)


def _toml(value: Any) -> str:
    """JSON's numbers, strings, booleans and lists are TOML's, but for escaped surrogates."""
    return json.dumps(value, ensure_ascii=False, default=str)


def read(path: Path) -> dict[str, Any]:
    """A sweep.toml.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
