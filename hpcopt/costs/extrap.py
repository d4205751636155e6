"""Extra-P as a second opinion: its input, and what its program makes of it where it is installed.

Calotoiu, Hoefler, Poke & Wolf, "Using automated performance modeling to find scalability bugs in complex
codes", SC '13. The file is its JSON Lines format: a measurement a line.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np

from hpcopt.costs.prediction import Model
from hpcopt.ground import files

SECONDS = 120


def write(models: dict[str, Model], file: Path) -> list[Path]:
    """Writes seconds of a round, and of its parts, by ranks; a file for each method, for ranks may differ.

    Raises:
        UserError: a file cannot be written.
    """
    written = []
    for label, model in models.items():
        values: dict[tuple[str, int], list[float]] = {}
        for run in model.runs:
            parts = {"round": run.seconds, "compute": run.compute} | {u.name: u.seconds for u in run.uses}
            for part, seconds in parts.items():
                values.setdefault((part, run.on.ranks), []).extend(np.asarray(seconds).tolist())
        lines = [
            json.dumps({"params": {"p": ranks}, "callpath": part, "metric": "seconds", "value": of_ranks})
            for (part, ranks), of_ranks in values.items()
        ]
        name = "".join(c if c.isalnum() else "-" for c in label).strip("-")
        path = file if len(models) == 1 else file.with_name(f"{file.stem}-{name}{file.suffix}")
        with files.replacing(path) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        written.append(path)
    return written


def second_opinion(file: Path) -> str:
    """What `extrap` prints about the file; or why it does not."""
    program = shutil.which("extrap")
    if program is None:
        return (
            f"{file} is for Extra-P: extrap --json {file} (it needs an environment of its own: NumPy below 2)"
        )
    command = [program, "--json", str(file), "--print", "all", "--disable-progress", "--median"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"extrap took longer than {SECONDS} s"
    if ended.returncode:
        return f"extrap ended with {ended.returncode}: {ended.stderr.strip()[-500:]}"
    return ended.stdout
