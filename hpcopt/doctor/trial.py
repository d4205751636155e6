"""Two ranks, started by a doctor that is alone: does the launcher work, and does what needs two ranks?"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

from hpcopt.control.launcher import without_launcher
from hpcopt.doctor.finding import Finding, Grade, Probe, Where, fails, ok, warning, worst
from hpcopt.doctor.table import from_json

SECONDS = 60.0
CHILD_SECONDS = 52.0
_REMEDIES = {
    "root": "source jobs/env.sh, which permits mpirun as root",
    "slots": "source jobs/env.sh, which permits more ranks than cores, or ask for 2 tasks",
}
_OTHERWISE = "source jobs/env.sh, or load the cluster's MPI module (HPCOPT_MODULES); in a job try srun -n 2"


def two_ranks() -> Finding:
    """Starts ``mpirun -n 2 python -m hpcopt.doctor 2`` and reports what that finds."""
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        return warning("no mpirun on PATH: one rank only", _OTHERWISE)
    start = time.monotonic()
    code, output, complaint = _run([mpirun, "-n", "2", sys.executable, "-m", "hpcopt.doctor", "2"])
    rows = from_json(output)
    if rows is None:
        return _did_not_start(mpirun, code, complaint)
    bad = [row for row in rows if row.finding.grade >= Grade.WARNING]
    if not bad:
        return ok(f"{mpirun}: {', '.join(row.name for row in rows)} work, {time.monotonic() - start:.1f} s")
    found = worst([row.finding for row in bad], [""] * len(bad))
    grade = min(max(row.finding.grade for row in bad), Grade.FAILS)
    return Finding(grade, "; ".join(f"{row.name}: {row.finding.result}" for row in bad), found.remedy)


def _did_not_start(mpirun: str, code: int | None, complaint: str) -> Finding:
    remedy = next((text for word, text in _REMEDIES.items() if word in complaint), _OTHERWISE)
    if code is None:
        return fails(f"{mpirun}: no answer within {SECONDS:.0f} s", remedy)
    lines = [line for line in complaint.splitlines() if line.strip("-* \t")]
    return fails(f"{mpirun}: exit code {code}: {' '.join(lines)[:160]}", remedy)


def _run(command: list[str]) -> tuple[int | None, str, str]:
    """Exit code (None: out of time), stdout and stderr."""
    process = subprocess.Popen(
        command,
        env=without_launcher(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, complaint = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return None, *_end(process)
    return process.returncode, output, complaint


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ends a launcher: by a request, so that it can end its ranks, and by force."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


TRIAL = Probe("2 ranks by mpirun", two_ranks, _OTHERWISE, Where.FIRST, seconds=SECONDS + 5)
