"""Which words may go into a batch script, and how they are written there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, Field

LONGEST = 4000
_N = "[0-9]{1,6}"
_FORMS = tuple(
    re.compile(form.replace("N", _N))
    for form in (
        r"(?P<m>N)(:(?P<s>N))?",
        r"(?P<h>N):(?P<m>N):(?P<s>N)",
        r"(?P<d>N)-(?P<h>N)(:(?P<m>N)(:(?P<s>N))?)?",
    )
)


def _one_line(text: str) -> str:
    """Refuses what no quoting makes safe: line breaks, control characters, broken encodings, nothing."""
    if not text or len(text) > LONGEST or not text.isprintable():
        raise ValueError(f"must be one line of 1 to {LONGEST} printable characters")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Name = Annotated[Line, Field(max_length=128)]
JobId = Annotated[str, Field(pattern=r"^[0-9]{1,18}(_[0-9]{1,9})?$")]


def directive(option: str, value: str = "") -> str:
    r"""A ``#SBATCH`` line.

    No shell reads these lines; sbatch does, with rules of its own: both quotes group, ``#`` begins a comment,
    and a backslash takes the next character as it is, inside either kind of quotes too (its `_get_argument`).
    """
    if not value:
        return f"#SBATCH --{option}"
    if re.fullmatch(r"[\w.,:@%+/=-]+", value, re.ASCII):
        return f"#SBATCH --{option}={value}"
    escaped = value.replace("\\", r"\\").replace('"', r"\"")
    return f'#SBATCH --{option}="{escaped}"'


def file_pattern(path: str) -> str:
    """A path as sbatch's --output takes it, where % begins a placeholder."""
    return path.replace("%", "%%")


def array(name: str, words: Iterable[str], before: str = "") -> str:
    """A bash array, one element per line where there are several, each with a fixed word ``before`` it."""
    quoted = [before + _quoted(word) for word in words]
    if len(quoted) <= 1:
        return f"{name}=({' '.join(quoted)})"
    return "\n".join([f"{name}=(", *(f"  {word}" for word in quoted), ")"])


def _quoted(word: str) -> str:
    """A word for the shell; with quotes around a comma, which nobody then takes for one between words."""
    quoted = shlex.quote(word)
    return f"'{word}'" if quoted == word and "," in word else quoted


def seconds(time: str) -> int:
    """A time limit in Slurm's notation [s].

    Raises:
        ValueError: it is none.
    """
    found = next(filter(None, (form.fullmatch(time) for form in _FORMS)), None)
    part = {key: int(value or 0) for key, value in found.groupdict().items()} if found else {}
    total = sum(part.get(key, 0) * unit for key, unit in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)))
    if total <= 0:
        raise ValueError(
            "must be MINUTES, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, and longer than nothing"
        )
    return total


def _time(text: str) -> str:
    seconds(text)
    return text


Time = Annotated[str, AfterValidator(_time)]
