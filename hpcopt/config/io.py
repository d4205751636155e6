"""Reading, checking and writing config files."""

from __future__ import annotations

import codecs
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from hpcopt.config import methods
from hpcopt.config.base import Table
from hpcopt.config.explain import explained
from hpcopt.config.problems import PROBLEM_TABLES, ProblemTable, kinds, problem_class
from hpcopt.config.run import RunTable
from hpcopt.errors import NothingToResume, UserError
from hpcopt.ground.files import home
from hpcopt.ground.own_code import is_own
from hpcopt.ground.words import suggestion

T = TypeVar("T", bound=Table)

MAX_BYTES = 1 << 20
TABLES = ("run", "method", "problem")


@dataclass(frozen=True)
class RunConfig:
    """A whole config, checked, with every default filled in."""

    run: RunTable
    method: Table
    problem: ProblemTable

    def tables(self) -> dict[str, dict[str, Any]]:
        """Plain values by table and key, without those that are not set."""
        run, method = (table.model_dump(exclude_none=True) for table in (self.run, self.method))
        return {"run": run, "method": method, "problem": self.problem.dump()}

    def identity(self) -> dict[str, Any]:
        """What must not change within a run."""
        run = self.run
        return {
            "method": run.method,
            "problem": self.problem.kind,
            "workers": run.workers,
            "seed": run.seed,
            "dtype": run.dtype,
        }


def load(
    path: Path,
    overrides: Iterable[str] = (),
    method_table: type[Table] | None = None,
    out: Path | None = None,
) -> RunConfig:
    """Reads and checks a config file.

    Args:
        path: the TOML file.
        overrides: ``"table.key=value"``, the value in TOML's notation (a bare word is a string).
        method_table: see `from_tables`.
        out: in place of run.out; as it is, in nobody's notation.

    Raises:
        UserError: everything that is wrong, in one message, with the file, the keys and what is allowed.
    """
    tables = parse(path)
    for setting in overrides:
        override(tables, setting)
    if out is not None and isinstance(tables.setdefault("run", {}), dict):
        tables["run"]["out"] = str(out)
    return from_tables(tables, str(path), method_table)


def resumable(
    directory: Path, overrides: Iterable[str] = (), method_table: type[Table] | None = None
) -> RunConfig:
    """The config of a run that is in a directory.

    Raises:
        NothingToResume: there is no config.toml.
        UserError: as `load`.
    """
    path = directory / "config.toml"
    if not os.path.isfile(path):  # unlike Path.is_file, it takes any name
        raise NothingToResume(f"{directory}: no config.toml, so there is no run to resume here")
    begun, config = load(path, (), method_table), load(path, tuple(overrides), method_table)
    changed = _changed("method", begun.method, config.method) + _changed(
        "problem", begun.problem, config.problem
    )
    _fail(str(path), changed)
    return config


def _changed(name: str, begun: Table, now: Table) -> list[str]:
    """What must not have changed in a table but has; of another method or kind the checkpoint tells."""
    return [
        f"[{name}] {key} = {getattr(now, key)!r}: the run was begun with {getattr(begun, key)!r}, and what "
        "it carries along depends on it; start another run"
        for key in sorted(begun.fixed)
        if type(now) is type(begun) and getattr(now, key) != getattr(begun, key)
    ]


def from_tables(tables: Mapping[str, Any], source: str, method_table: type[Table] | None = None) -> RunConfig:
    """Checks already parsed tables.

    Args:
        tables: by name.
        source: their origin, for messages.
        method_table: the class of the method's settings; None: as the method's name says.

    Raises:
        UserError: as `load`.
    """
    errors = [
        f"[{name}]: unknown table{suggestion(name, TABLES)}; allowed are [run], [method] and [problem]"
        for name in tables
        if name not in TABLES
    ]
    errors += [f"{name}: must be a table" for name in TABLES if not isinstance(tables.get(name, {}), dict)]
    _fail(source, errors)
    run = _validate(RunTable, "run", tables.get("run", {}), errors)
    method = _method(tables, method_table, errors)
    problem = _problem(tables, run, errors)
    _fail(source, errors)
    assert run is not None
    assert method is not None
    assert problem is not None
    if method.kinds and problem.kind in PROBLEM_TABLES and problem.kind not in method.kinds:
        allowed = ", ".join(f'"{kind}"' for kind in method.kinds)
        _fail(source, [f'[problem] kind = "{problem.kind}": {run.method} is for {allowed}'])
    if run.curvature_ranks and not method.beside:
        _fail(
            source,
            [
                f"[run] curvature_ranks = {run.curvature_ranks}: {run.method} has nothing to compute beside "
                'its rounds, as dho2 with variant = "concurrent" has; set it to 0'
            ],
        )
    config = _resolve(RunConfig(run, method, problem))
    _fail(source, [f"[method] {misfit}" for misfit in method.misfits(run)] + _unwritable(config))
    return config


def _unwritable(config: RunConfig) -> list[str]:
    """The values of a user's own keys that config.toml and run.h5 cannot hold."""
    errors = []
    for name, table in config.tables().items():
        for key, value in table.items():
            try:
                json.dumps([key, value], ensure_ascii=False).encode()
            except (TypeError, ValueError):
                allowed = "a number, a string in UTF-8, true or false, or a list of such"
                errors.append(f"[{name}] {key} = {value!r}: must be {allowed}")
    return errors


def dump(config: RunConfig) -> str:
    """The config as TOML, every default filled in."""
    import tomli_w

    return tomli_w.dumps(config.tables())


def check_table(table: type[T], values: Mapping[str, Any], source: str) -> T:
    """Checks the keys of one table by itself, for what is not a run's config (a site profile).

    Raises:
        UserError: as `load`.
    """
    errors: list[str] = []
    checked = _validate(table, "", values, errors)
    _fail(source, errors)
    assert checked is not None
    return checked


def parse(path: Path) -> dict[str, Any]:
    """Reads a TOML file of at most `MAX_BYTES`.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)  # never more, for it may be a device or a pipe without an end
        if len(text) > MAX_BYTES:
            raise UserError(f"{path}: a config has at most {MAX_BYTES} bytes. Is it a data file?")
        if text.startswith(codecs.BOM_UTF8):
            raise UserError(
                f"{path}: begins with a byte order mark, which is not TOML; save it as UTF-8 without"
            )
        return tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; a config is TOML in UTF-8") from None
    except (ValueError, RecursionError) as error:  # beside what is not TOML, numbers of 5,000 digits
        raise UserError(f"{path}: not valid TOML: {error}") from None


def override(tables: dict[str, Any], setting: str) -> None:
    """Changes one key of parsed tables; "TABLE.KEY=VALUE", the value in TOML's notation.

    Raises:
        UserError: it is not written so.
    """
    key, equals, text = setting.partition("=") if isinstance(setting, str) else ("", "", "")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        raise UserError(f"--set {setting}: must be TABLE.KEY=VALUE, for example --set run.rounds=100")
    try:
        value = _value(text)
    except (ValueError, RecursionError) as error:
        if text.strip()[:1] in tuple("\"'[{"):
            raise UserError(f"--set {setting}: not a valid value: {error}") from None
        value = text.strip()
    table = tables.setdefault(parts[0], {})
    if isinstance(table, dict):
        table[parts[1]] = value


def _value(text: str) -> Any:
    """One value in TOML's notation; raises ValueError, RecursionError."""
    tables = tomllib.loads(f"value = {text}")
    if tables.keys() != {"value"}:
        raise ValueError("more than one value")
    return tables["value"]


def _method(tables: Mapping[str, Any], table: type[Table] | None, errors: list[str]) -> Table | None:
    name = tables.get("run", {}).get("method", RunTable.model_fields["method"].default)
    if not isinstance(name, str):
        return None
    try:
        return _validate(table or methods.method_table(name), "method", tables.get("method", {}), errors)
    except UserError as error:
        errors.append(str(error))
        return None


def _problem(tables: Mapping[str, Any], run: RunTable | None, errors: list[str]) -> ProblemTable | None:
    keys = dict(tables.get("problem", {}))
    if "kind" not in keys:
        errors.append(f"[problem] kind: is missing; allowed: {kinds()}")
        return None
    if keys.pop("workers", None) is not None:
        errors.append("[problem] workers: unknown key; it belongs to [run]")
    run = run or RunTable()
    try:
        return problem_class(keys["kind"])(run.workers, **keys).seeded(run.seed)
    except UserError as error:
        errors += [f"[problem] {line}" for line in str(error).splitlines()]
        return None


def _validate(table: type[T], name: str, values: Mapping[str, Any], errors: list[str]) -> T | None:
    try:
        return table.model_validate(dict(values))
    except ValidationError as error:
        prefix = f"[{name}] " if name else ""
        errors += [prefix + line for line in explained(table, error)]
        return None


def _fail(source: str, errors: list[str]) -> None:
    if errors:
        raise UserError("\n".join(f"{source}: {error}" for error in errors))


def _resolve(config: RunConfig) -> RunConfig:
    """Fills in the defaults that depend on other values."""
    run, method = config.run, config.method
    changes: dict[str, Any] = {}
    if run.dtype is None and not is_own(config.problem.kind):  # of one's own the recipe says it: `settled`
        changes["dtype"] = "float32" if config.problem.kind == "network" else "float64"
    if run.out is None:
        kind = config.problem.kind.replace(":", ".")
        changes["out"] = f"runs/{run.method.replace(':', '.')}-{kind}-seed{run.seed}"
    elif run.out.startswith("~"):
        changes["out"] = str(home(run.out))
    # so that a run extended later goes on as it began
    horizons = {key: max(run.rounds, 1) for key in method.horizons if getattr(method, key) is None}
    method = method.model_copy(update=horizons)
    return replace(config, run=run.model_copy(update=changes), method=method)
