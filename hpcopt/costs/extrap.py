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


def write(models: dict[str, Model], file: Path) -> None:
    """Writes seconds of a round, and of its parts, by ranks.

    Raises:
        UserError: the file cannot be written.
    """
    lines = []
    for label, model in models.items():
        for run in model.runs:
            parts = {"round": run.seconds, "compute": run.compute} | {u.name: u.seconds for u in run.uses}
            for part, seconds in parts.items():
                values = np.asarray(seconds).tolist()
                about = {"callpath": f"{label}->{part}", "metric": "seconds", "value": values}
                lines.append(json.dumps({"params": {"p": run.on.ranks}} | about))
    with files.replacing(file) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


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
