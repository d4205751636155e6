"""The plan of a sweep: one config, keys that take several values, and the cases that this makes."""

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
from hpcopt.errors import UserError

MAX_CASES = 10_000
MAX_NAME = 100
"""characters; a file system takes 255 bytes, and a name gets endings"""
FILE = "sweep.toml"
_RANGE = re.compile(r"([+-]?\d{1,15}):([+-]?\d{1,15})(?::([+-]?\d{1,15}))?", re.ASCII)
_OPENING, _CLOSING = "[{(", "]})"


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
        over: as typed, "TABLE.KEY=VALUES".
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
        for setting in (*case.settings, f"run.out={json.dumps(str(out))}"):
            override(tables, setting)
        return from_tables(tables, f"{self.source}, case {case.name}")

    def check(self, ranks: int) -> None:
        """Checks every case.

        Args:
            ranks: of each run.

        Raises:
            UserError: the first case that is wrong.
        """
        for case in self.cases:
            config = self.config(case, Path(case.name))
            told = f"each case has {ranks} rank{'s' * (ranks > 1)} (--ranks-each)"
            if misfit := config.run.misfit(ranks, told):
                raise UserError(f"{self.source}, case {case.name}: [run] {misfit}")

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
        return found + [
            f"{key} = {_shown(here.get(key))}, begun with {_shown(then.get(key))}"
            for key in sorted(then.keys() | here.keys())
            if then.get(key) != here.get(key)
        ]


def plan(config: Path, over: Sequence[str], overrides: Sequence[str] = (), zipped: bool = False) -> Plan:
    """The plan of a sweep; its cases are not checked yet.

    Args:
        config: the TOML file.
        over: each "TABLE.KEY=V1,V2,…", where V may be a range of whole numbers FIRST:END or FIRST:END:STEP,
            without the end.
        overrides: what all cases change, "TABLE.KEY=VALUE".
        zipped: pair the values; else every combination.

    Raises:
        UserError: a value is missing, keys to be paired have different numbers of values, a key is named
            twice, two cases are the same, or there are more than `MAX_CASES`.
    """
    tables = parse(config)
    for setting in overrides:
        override(tables, setting)
    return Plan(str(config), tables, tuple(over), zipped, combined(over, zipped))


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
    if count > MAX_CASES:
        raise UserError(f"{option}: makes {count} cases, and {MAX_CASES} are allowed")
    rows = zip(*columns, strict=True) if zipped else itertools.product(*columns)
    settings = [tuple(f"{key}={value}" for key, value in zip(keys, row, strict=True)) for row in rows]
    _differ(settings, option)
    return tuple(itertools.starmap(Case, zip(_names(keys, settings), settings, strict=True)))


def axis(text: str, option: str = "--over") -> tuple[str, list[str] | range]:
    """A key and its values, in TOML's notation; raises `UserError`.

    >>> axis("method.lr=0.01,0.1"), axis("run.seed=0:3")
    (('method.lr', ['0.01', '0.1']), ('run.seed', range(0, 3)))
    """
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"\w+\.\w+", key := key.strip(), re.ASCII):
        raise UserError(f"{option} {text}: must be TABLE.KEY=VALUE,VALUE,…, like method.lr=0.1,0.2")
    if key == "run.out":
        raise UserError(f"{option} run.out: every run gets a directory of its own anyway")
    parts = [_range(part, f"{option} {text}") or [part] for part in split(values, f"{option} {key}")]
    if len(parts) == 1:
        return key, parts[0]
    if sum(map(len, parts)) > MAX_CASES:
        raise UserError(f"{option} {key}: has more than {MAX_CASES} values")
    return key, [str(value) for part in parts for value in part]


def split(text: str, where: str) -> list[str]:
    """A list's elements between commas, where those inside brackets and quotes do not count.

    Args:
        text: the list.
        where: the option, for messages.

    Raises:
        UserError: an element is empty, or a bracket or a quote is not closed.
    """
    parts, quote, depth = [""], "", 0
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == "," and not quote and not depth:
            parts.append("")
        else:
            parts[-1] += letter
        if depth < 0:
            break
    parts = [part.strip() for part in parts]
    if quote or depth or not all(parts):
        raise UserError(f"{where}={text}: must be values, with one comma between two of them")
    return parts


def _range(text: str, where: str) -> range | None:
    """The whole numbers of FIRST:END or FIRST:END:STEP; None for another value."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    first, end, step = (int(part) if part else 1 for part in found.groups())
    if not step or not (numbers := range(first, end, step)):
        raise UserError(f"{where}: {text} has no number in it; 0:5 is 0 to 4, and 0:10:2 every other one")
    return numbers


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
    return re.sub(r"[^\w.+,-]", "_", value, flags=re.ASCII)


def _flat(tables: Any) -> dict[str, Any]:
    if not isinstance(tables, dict):
        return {"tables": tables}
    return {
        f"{name}.{key}": value
        for name, table in tables.items()
        for key, value in (table.items() if isinstance(table, dict) else [("", table)])
    }


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, default=str)


def read(path: Path) -> dict[str, Any]:
    """A sweep.toml.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
