"""Patience: ends a doctor whose probe hangs or dies, and still shows the table.

A thread would not do: h5py keeps Python's global lock inside HDF5, so that no other thread of a rank that
hangs in a collective write ever runs. Rank 0 therefore tells a small process of its own, before every probe,
what to print if the probe does not come back; the ranks themselves end by a timer outside of Python.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from hpcopt.ground.terminal import raw

# after the patience for a probe the table goes out, rank 0 ends, and the others, if the launcher has not
# ended them
GRACE_FIRST, GRACE_OTHERS = 2.0, 4.0

_SCRIPT = """
import json, os, select, shutil, sys, time
deadline, orders, buffer = time.monotonic() + 60, {"died": ""}, b""
while True:
    ready, _, _ = select.select([0], [], [], max(0.0, deadline - time.monotonic()))
    chunk = os.read(0, 65536) if ready else b""
    if not chunk:
        text = orders["died" if ready else "hangs"]
        break
    *lines, buffer = (buffer + chunk).split(b"\\n")
    if lines:
        orders = json.loads(lines[-1])
        deadline = time.monotonic() + orders["seconds"]
shutil.rmtree(sys.argv[1], ignore_errors=True)
text = text.encode()
while text:
    text = text[os.write(1, text):]
"""


class Guardian:
    """Rank 0's process that outlives it, to print the table and to remove what the probes left.

    To be made before MPI starts: some networks forbid to fork afterwards.

    Args:
        scratch: a directory to remove at the end, whatever happens.
    """

    def __init__(self, scratch: Path) -> None:
        self._process = subprocess.Popen(
            # its own session: a launcher that ends the rank's process group must not end it as well
            [sys.executable, "-I", "-S", "-c", _SCRIPT, str(scratch)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def expect(self, seconds: float, hangs: str, died: str) -> None:
        """What to print when nothing is heard for so long, and when this process ends before it is."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps({"seconds": seconds, "hangs": hangs, "died": died}).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError:  # too late: the table is out already
            os._exit(1)

    def dismiss(self) -> None:
        """Ends it without a word."""
        self.expect(60.0, "", "")
        self._process.communicate(timeout=60)


class Timer:
    """Ends this process with exit code 1 when a probe takes too long, whatever holds the interpreter.

    Args:
        first: whether this is rank 0, which ends before the others.

    Attributes:
        message: what this rank has to say when time is up; may be changed meanwhile.
    """

    def __init__(self, first: bool) -> None:
        self.grace = GRACE_FIRST if first else GRACE_OTHERS
        self._silence = open(os.devnull, "w")  # noqa: SIM115  # for the stacks, which would bury the table
        self._voice: threading.Timer | None = None
        self.message = ""

    def start(self, seconds: float, message: str) -> None:
        """Begins anew; `message` goes to stderr when time is up (unless the rank is stuck in HDF5)."""
        self.stop()
        self.message = message
        self._voice = threading.Timer(seconds, self._speak)
        self._voice.daemon = True
        self._voice.start()
        faulthandler.dump_traceback_later(seconds + self.grace, exit=True, file=self._silence)

    def stop(self) -> None:
        """No more patience is needed."""
        if self._voice is not None:
            self._voice.cancel()
        faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        """Ends the timer."""
        self.stop()
        self._silence.close()

    def _speak(self) -> None:
        if self.message:
            raw(f"{self.message}\n")
