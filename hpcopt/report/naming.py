"""What runs are called, and which of them are the same but for their seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING

from hpcopt.ground.terminal import printable

if TYPE_CHECKING:
    from hpcopt.report.runs import Run

SEED = re.compile(r",?(run\.)?seed=[^,]*")
"""in the names of a sweep's cases"""
FILES = ("run.h5", "scaling.h5")
"""names that are no names"""


@dataclass(frozen=True)
class Alike:
    """Runs of one config that differ in nothing but seeds and where they were written."""

    name: str
    runs: Sequence[Run]


def names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of different paths that tell them apart, printable."""
    parts = [path.resolve().parts for path in paths]
    parts = [one[:-1] if one[-1] in FILES else one for one in parts]
    found = []
    for path, one in zip(paths, parts, strict=True):
        others = [other for other in parts if other is not one]
        end = next((k for k in range(1, len(one)) if one[-k:] not in [o[-k:] for o in others]), None)
        found.append(printable("/".join(one[-end:])) if end else printable(path))
    return found


def alike(runs: Iterable[Run]) -> list[Alike]:
    """Runs that differ only in seeds (and run.out) together, on the same number of ranks.

    A group's name is its only run's; what the names of its runs have in common; or the first one's.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_but_seed(run), []).append(run)
    common = [_common(one) for one in groups.values()]
    return [
        Alike(name if common.count(name) == 1 else one[0].name, one)
        for name, one in zip(common, groups.values(), strict=True)
    ]


def _but_seed(run: Run) -> str:
    config = {
        table: {key: value for key, value in keys.items() if key != "seed" and (table, key) != ("run", "out")}
        for table, keys in run.config.items()
    }
    return json.dumps([config, run.tree.attrs.get("ranks"), run.tree.attrs.get("method")], sort_keys=True)


def _common(runs: Sequence[Run]) -> str:
    """A name for runs that differ in their seeds: theirs without the seed, or what they begin with."""
    if len(runs) == 1:
        return runs[0].name
    bare = {SEED.sub("", run.name) for run in runs}
    start = bare.pop() if len(bare) == 1 else commonprefix([run.name for run in runs])  # noqa: RUF071
    return start.strip(",/-_. ") or runs[0].name
