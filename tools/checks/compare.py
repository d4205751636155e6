"""The comparison of tools/compare: what two trees have computed for the same cases.

    python tools/checks/compare.py FOLDER PATTERN RANKS...

FOLDER holds what compare_runs.py left in it, under base-P and here-P for each number P of RANKS. Ends with
1 if anything that a run computes differs or is missing here; what is there in addition is only told.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from compare_cases import DTYPES, chosen

ROUNDING = 1e-12
"""of other orders of float64 sums, relative to the largest number of an array"""
VARYING = {"start", "end", "commit", "version", "libraries", "hosts", "slurm", "slurm_job", "slurm_restart"}
"""attributes that tell when, where and by what a run was made"""
VERSION = "schema_version"
COUNTED = {"round", "epochs", "gradients", "bytes_sent", "bytes_workers", "passes", "calls", "bytes"}
"""what is the same to the last bit in any arithmetic"""
EXACT = "float32"
"""the dtype in which sums are deterministic"""
SHOWN = 2
"""differences of one case, dtype and number of ranks that are told"""
LINE = "{:26}" + 4 * " {:16}"
Contents = dict[str, Any]


@dataclass
class Verdict:
    """What is known of one case, dtype and number of ranks.

    Attributes:
        largest: the largest difference that was allowed.
        wrong: what differs or is missing.
        new: what is only there in this tree.
    """

    largest: float = 0.0
    wrong: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.wrong:
            return "DIFFERS"
        return f"{self.largest:.0e}" if self.largest else "same"


# --- what a run has left ----------------------------------------------------------------------------------


def contents(out: Path) -> Contents:
    """Everything below a folder of runs that is no time: where it was -> an array or a text."""
    found: Contents = {}
    for path in [*sorted(out.glob("*/run.h5")), *sorted(out.glob("*/checkpoints/*.h5"))]:
        of_file = _checkpoint(path) if path.parent.name == "checkpoints" else _metrics(path)
        found |= {f"{path.relative_to(out)}: {place}": value for place, value in of_file.items()}
    return found


def _metrics(path: Path) -> Contents:
    """Of a run.h5."""
    with h5py.File(path) as file:
        arrays = _arrays(file)
        labels = [str(label) for label in arrays["ports/port"]]
        found: Contents = {f"{name}, units": str(file[name].attrs.get("units")) for name in arrays}
        header = dict(file.attrs)
    del arrays["ports/port"]
    for name, array in arrays.items():
        if _measured(name):
            found[name] = ""
        elif name.startswith("ports/") and array.ndim == 2:
            columns = _by_port(zip(labels, array.T, strict=True))
            found |= {f"{name} of {port}": column for port, column in columns.items()}
        else:
            found[name] = array
    for name in {"config", "jobs"} & header.keys():
        found |= _flat(f"@{name}", json.loads(header.pop(name)))
    chosen = json.loads(header.pop("chosen", "{}"))
    found |= {f"@chosen/{name}": what for name, what in chosen.items() if isinstance(what, str)}
    found |= {f"@notes: {line}": "" for line in str(header.pop("notes", "")).splitlines()}
    return found | _flat("@", header)


def _checkpoint(path: Path) -> Contents:
    """Of a checkpoint."""
    with h5py.File(path) as file:
        found: Contents = {f"state/{name}": array for name, array in _arrays(file["state"]).items()}
        meta = json.loads(file["meta"][...].tobytes())
    ports = meta["totals"].pop("ports")
    meta.pop("chosen", None)  # of all places where the run was; this one's is in run.h5
    for key in {key for counters in ports.values() for key in counters if not _measured(key)}:
        totals = _by_port((port, counters[key]) for port, counters in ports.items())
        found |= {f"meta/totals/{key} of {port}": np.float64(total) for port, total in totals.items()}
    return found | _flat("meta", meta)


def _arrays(group: h5py.Group) -> dict[str, np.ndarray]:
    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            text = h5py.check_string_dtype(item.dtype) is not None
            found[name] = item.asstr()[...].astype(str) if text else item[...]

    group.visititems(visit)
    return found


def _by_port(counters: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Sums over what a port does: counters may be kept for each of its verbs, as "PORT.VERB"."""
    sums: dict[str, Any] = {}
    for name, value in counters:
        port = name.partition(".")[0]
        sums[port] = sums.get(port, 0) + value
    return sums


def _measured(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.startswith("seconds") or last == "peak_memory"


def _flat(place: str, value: Any) -> Contents:
    """A tree of tables and lists as one table of texts; of what varies, only that it is there."""
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        return {
            name: text
            for key, item in value.items()
            if not _measured(str(key))
            for name, text in _flat(f"{place}/{key}", item).items()
        }
    return {place: "" if place.rpartition("/")[2] in VARYING else str(value)}


# --- the comparison ---------------------------------------------------------------------------------------


def compare(base: Path, here: Path, exact: bool) -> Verdict:
    """All runs of one case.

    Args:
        base, here: where the trees have left them.
        exact: whether every bit has to be the same.
    """
    verdict = Verdict()
    wanted, got = contents(base), contents(here)
    for tree, out, found in (("base", base, wanted), ("this tree", here, got)):
        if (out / "error").exists():
            verdict.wrong.append(f"{tree} fails: {(out / 'error').read_text().splitlines()[0]}")
        elif not found:
            verdict.wrong.append(f"{tree} has left nothing")
    if verdict.wrong:
        return verdict
    verdict.new = [name for name in got if name not in wanted]
    for name, value in wanted.items():
        if name not in got and _empty(name, value):
            continue  # a state need not have arrays without numbers
        if name not in got:
            verdict.wrong.append(f"{name}: missing")
        elif isinstance(value, str):
            _compare_text(verdict, name, value, got[name])
        else:
            _compare_array(verdict, name, value, got[name], exact)
    return verdict


def _empty(name: str, value: Any) -> bool:
    """Whether this is an array without numbers, or the shape of one in a checkpoint's meta data."""
    if isinstance(value, str):
        return "meta/arrays/" in name and 0 in json.loads(value)
    return bool(np.size(value) == 0)


def _compare_text(verdict: Verdict, name: str, base: str, here: Any) -> None:
    if base != here and name.endswith(VERSION):
        verdict.new.append(f"{name} = {here}")
    elif base != here:
        verdict.wrong.append(f"{name}: {here!r} instead of {base!r}")


def _compare_array(verdict: Verdict, name: str, base: Any, here: Any, exact: bool) -> None:
    base, here = np.asarray(base), np.asarray(here)
    if (base.shape, base.dtype) != (here.shape, here.dtype):
        verdict.wrong.append(f"{name}: {here.shape} {here.dtype} instead of {base.shape} {base.dtype}")
    elif base.dtype.kind == "U":
        _compare_text(verdict, name, str(base), str(here))
    elif base.tobytes() != here.tobytes():
        counted = base.dtype.kind != "f" or name.rpartition("/")[2].partition(" ")[0] in COUNTED
        difference = _relative(base, here)
        if not exact and not counted and difference <= ROUNDING:
            verdict.largest = max(verdict.largest, difference)
        else:
            verdict.wrong.append(f"{name}: differs by {difference:.1e} of its largest number")


def _relative(base: np.ndarray, here: np.ndarray) -> float:
    """The largest difference over the largest number; nan where only one of the two is a number."""
    same = (base == here) | ((base != base) & (here != here))
    difference, largest = np.abs(np.where(same, 0.0, here - base)).max(), np.nanmax(np.abs(base))
    return float(difference / largest) if largest else float("inf")


# --- the table --------------------------------------------------------------------------------------------


def main() -> int:
    """One line per case, and below it what differs; 1 if anything does."""
    folder, pattern, ranks = Path(sys.argv[1]), sys.argv[2], [int(text) for text in sys.argv[3:]]
    columns = [(dtype, count) for count in ranks for dtype in DTYPES]
    titles = [f"{dtype}, {count} rank{'s' * (count > 1)}" for dtype, count in columns]
    print(LINE.format("", *titles).rstrip())
    new: Counter[str] = Counter()
    wrong = 0
    for name, case in chosen(pattern).items():
        verdicts = [
            compare(*(folder / f"{tree}-{count}" / name / dtype for tree in ("base", "here")), dtype == EXACT)
            if count <= case.ranks
            else None
            for dtype, count in columns
        ]
        print(LINE.format(name, *("-" if verdict is None else str(verdict) for verdict in verdicts)).rstrip())
        for title, verdict in zip(titles, verdicts, strict=True):
            if verdict is not None:
                tell(title, verdict.wrong)
                wrong += bool(verdict.wrong)
                new.update(place.partition(": ")[2] for place in verdict.new)
    for place, count in sorted(new.items()):
        print(f"new here, in {count} files: {place}")
    if not chosen(pattern):
        print(f"compare: no case matches {pattern!r}")
        return 1
    print("compare: different" if wrong else "compare: the same")
    return int(wrong > 0)


def tell(title: str, differences: list[str]) -> None:
    """The first of them, and how many more there are."""
    more = len(differences) - SHOWN
    for line in differences[:SHOWN]:
        print(f"    {title}: {line}")
    if more > 0:
        print(f"    {title}: and {more} more")


if __name__ == "__main__":
    sys.exit(main())
