"""One owner of a run's directory at a time, over network file systems and across hosts. Local; no MPI.

Whoever writes holds DIR/owner.json, a hard link to a file of its own. A link is made or refused at once by
every file system, and locks (flock) are not seen by other hosts on some. The file says who holds it, and a
thread counts up a heartbeat in it. An owner that was killed leaves it behind; who comes next takes it over

- at once if the owner is a process of this machine that is gone, or an earlier start of the same Slurm job;
- else when the heartbeat has not moved for `PATIENCE` beats by the reader's own clock (never by comparing the
  clocks of two hosts).

Of several that want to follow the same owner one makes the link ``owner.after-TOKEN`` and then takes the
name; it may be killed between both, and is then followed itself: the last of that chain is the present owner.
The old owner, if it lives after all, finds another file under the name, and writes nothing more.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcopt.errors import UserError
from hpcopt.ground import files
from hpcopt.ground.stamps import now

NAME = "owner.json"
BEAT = 5.0
"""seconds between heartbeats"""
PATIENCE = 3
"""beats that a living owner may miss"""
FIELDS = ("host", "pid", "machine", "started", "slurm_job", "restart", "since", "token")
"""what a lease says of its owner"""
SEEN_SECONDS = 10.0
"""for what one host has written to be seen by the others"""
DIGITS = 12
"""of the heartbeat, at the beginning of the file, so that it changes in place"""


class Lease:
    """This process's hold on a directory; `take` it, `release` it.

    Args:
        directory: exists.
        beat: seconds between heartbeats; all owners of a directory should have the same.
    """

    def __init__(self, directory: Path, beat: float = BEAT) -> None:
        self._directory, self._beat = directory, beat
        self._path = directory / NAME
        self.token = secrets.token_hex(8)
        """tells this owner from all others"""
        self._descriptor = -1
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)
        self.lost = False
        """whether it was another's at the last heartbeat"""

    def take(self) -> None:
        """Makes this process the owner; waits for a heartbeat where it cannot tell otherwise.

        Raises:
            UserError: there is an owner, and it lives; or the directory cannot be written.
        """
        mine = self._private()
        with files.refusals(self._path):
            self._descriptor = os.open(mine, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            try:
                me = _identity() | {"token": self.token}
                os.write(self._descriptor, f"{0:0{DIGITS}}\n{json.dumps(me)}\n".encode())
                os.fsync(self._descriptor)
                self._thread.start()
                while not self._succeed(mine):
                    pass
                self.lost = False
            except BaseException:
                self._end()
                raise
            finally:
                files.discard(mine)

    def held(self) -> bool:
        """Whether the name is still this file's."""
        return self._descriptor >= 0 and self._same(self._path)

    def check(self) -> None:
        """See `held`.

        Raises:
            UserError: it is another's now, or was removed.
        """
        if not self.held():
            other = self._present()
            who = f"{other.who} has taken it over" if other else f"{NAME} is gone"
            raise UserError(f"{self._directory}: {who}; this job ends here and writes nothing more into it")

    def release(self) -> None:
        """Gives the directory back, if it is still this process's."""
        if self._descriptor < 0:
            return
        gone = self._private()
        with contextlib.suppress(OSError):
            # not removed by name: that may be another's since the last look
            os.rename(self._path, gone)
            if not self._same(gone):
                os.link(gone, self._path)
            os.unlink(gone)
        self._end()

    def _end(self) -> None:
        self._released.set()
        self._thread.join()  # it must not write into what gets this descriptor next
        os.close(self._descriptor)
        self._descriptor = -1

    def _succeed(self, mine: Path) -> bool:
        """Takes the name if it is free or its owner is gone; False: look again."""
        present = self._present()
        if present is None:
            return _linked(mine, self._path)
        if not self._outlived(present):
            return False
        heir = self._heir(present.token)
        if not _linked(mine, heir):
            return False
        if (latest := self._present()) is None or latest.token != self.token:
            files.discard(heir)  # somebody had followed before
            return False
        chosen = self._private()
        os.link(mine, chosen)
        os.replace(chosen, self._path)
        for other in self._directory.glob("owner.after-*"):
            files.discard(other)
        return True

    def _outlived(self, owner: Owner) -> bool:
        """Waits until an owner is known to be gone; False: it has been followed meanwhile.

        Raises:
            UserError: it lives.
        """
        if owner.gone():
            return True
        until = time.monotonic() + PATIENCE * self._beat
        while time.monotonic() < until:
            time.sleep(min(0.2, self._beat / 10))
            present = self._present()
            if present is None or present.token != owner.token:
                return False
            if present.beat != owner.beat:
                raise UserError(
                    f"{self._directory}: {owner.who} is writing into it; let it end, or choose another "
                    "directory"
                )
        return True

    def _present(self) -> Owner | None:
        """The last of those that follow one another from the name on."""
        owner = found = Owner.read(self._path)
        while found:
            owner, found = found, Owner.read(self._heir(found.token))
        return owner

    def _same(self, path: Path) -> bool:
        """Whether a name is this process's file; opened anew each time, see `Owner.read`."""
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            return os.path.samestat(os.fstat(descriptor), os.fstat(self._descriptor))
        return False

    def _heir(self, token: str) -> Path:
        return self._directory / f"owner.after-{token}"

    def _private(self) -> Path:
        """A name that nobody else can have thought of."""
        return self._directory / f".owner-{secrets.token_hex(8)}"

    def _live(self) -> None:
        beat = 0
        while not self._released.wait(self._beat):
            beat += 1
            # a file system that refuses for a while is none of the run's business here
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, f"{beat:0{DIGITS}}".encode(), 0)
                os.fsync(self._descriptor)
            self.lost = not self.held()


def visible(directory: Path, token: str) -> bool:
    """Whether this process sees who owns a directory; it may take a network file system a while to tell."""
    until = time.monotonic() + SEEN_SECONDS
    while (owner := Owner.read(directory / NAME)) is None or owner.token != token:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@dataclass(frozen=True)
class Owner:
    """What an owner says about itself.

    Attributes:
        beat: its heartbeat.
        about: see `_identity`.
    """

    beat: str
    about: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """None where there is none.

        Raises:
            UserError: the file is not a lease.
        """
        try:
            # opened anew each time: a network file system looks at the server then, else it need not
            with _opened(path) as descriptor:
                beat, _, text = os.read(descriptor, 1 << 16).decode().partition("\n")
            about = json.loads(text)
            return cls(beat, {key: str(about[key]) for key in FIELDS})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: does not say who owns the directory ({getattr(error, 'strerror', error)}); "
                "remove it if no job is writing there"
            ) from None

    @property
    def token(self) -> str:
        """Tells this owner from all others."""
        return self.about["token"]

    @property
    def who(self) -> str:
        """In words."""
        job = f", Slurm job {self.about['slurm_job']}" if self.about["slurm_job"] else ""
        return f"process {self.about['pid']} on {self.about['host']}{job} (since {self.about['since']})"

    def gone(self) -> bool:
        """Whether it is an earlier start of this Slurm job, or a process of this machine that has ended."""
        here, job = _identity(), self.about["slurm_job"]
        if job and job == here["slurm_job"] and self.about["restart"] != here["restart"]:
            return True
        return self.here() and _started(self.about["pid"]) != self.about["started"]

    def here(self) -> bool:
        """Whether it is, or was, a process that this one could see."""
        machine = _machine()
        return bool(machine) and self.about["machine"] == machine


def _identity() -> dict[str, str]:
    """This process, among those of all hosts and of all times."""
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "machine": _machine(),
        "started": _started(str(os.getpid())),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "since": now(),
    }


def _machine() -> str:
    """Where process numbers mean the same: one boot of one kernel, and one name space of processes."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    return ""


def _started(pid: str) -> str:
    """When a process began, in the kernel's ticks; empty if there is none, or only its remains."""
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return ""


def _linked(source: Path, path: Path) -> bool:
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
