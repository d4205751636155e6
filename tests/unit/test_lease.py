"""One owner of a directory at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcopt.errors import UserError
from hpcopt.storage import lease as module
from hpcopt.storage.lease import DIGITS, NAME, Lease

BEAT = 0.1
OWNER = """
import sys, time
from pathlib import Path
from hpcopt.errors import UserError
from hpcopt.storage.lease import Lease
lease = Lease(Path(sys.argv[1]), beat=0.1)
try:
    lease.take()
except UserError as error:
    print("refused", error, flush=True)
else:
    print("owner", flush=True)
    sys.stdin.read()
    lease.release()
"""


def start(directory: Path, **variables: str) -> subprocess.Popen[str]:
    """Another process that wants the directory; it keeps it until its stdin is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )


def answer(process: subprocess.Popen[str]) -> str:
    """What it said first."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture
def owner(tmp_path):
    """A process that has the directory."""
    process = start(tmp_path)
    assert answer(process) == "owner\n"
    yield process
    process.kill()
    process.wait()


def strange(directory: Path, **about: str) -> None:
    """As if the owner were on another machine."""
    text = (directory / NAME).read_text()
    beat, _, rest = text.partition("\n")
    with (directory / NAME).open("r+") as file:  # in place: it is still the owner's file
        file.write(f"{beat}\n{json.dumps(json.loads(rest) | about)}\n")
        file.truncate()


def test_it_is_given_back(tmp_path):
    for _ in range(2):
        lease = Lease(tmp_path, BEAT)
        lease.take()
        assert lease.held()
        lease.check()
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
        lease.release()
        assert not lease.held()
        lease.release()  # nothing more
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_who_lives_is_named(tmp_path, owner, where):
    if where == "elsewhere":
        strange(tmp_path, machine="another", host="node7", slurm_job="17")
    with pytest.raises(UserError) as caught:
        Lease(tmp_path, BEAT).take()
    name = "on node7, Slurm job 17" if where == "elsewhere" else f"on {os.uname().nodename}"
    assert f"{tmp_path}: process {owner.pid} {name}" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    owner.stdin.close()  # the refused one has disturbed nothing
    assert owner.wait(10) == 0
    assert not list(tmp_path.iterdir())


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path, owner, monkeypatch):
    owner.kill()
    owner.wait()
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    lease = Lease(tmp_path, BEAT)
    lease.take()
    lease.check()
    lease.release()


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path, owner, monkeypatch):
    strange(tmp_path, started="1")
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    lease = Lease(tmp_path, BEAT)
    lease.take()
    lease.release()


def test_an_earlier_start_of_the_same_slurm_job_is_followed_at_once(tmp_path, owner, monkeypatch):
    strange(tmp_path, machine="another", slurm_job="17", restart="0")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    lease = Lease(tmp_path, BEAT)
    lease.take()
    lease.release()


def test_a_heartbeat_that_stands_still_is_waited_for(tmp_path, owner):
    """A stopped process is followed after three beats, and notices when it goes on."""
    strange(tmp_path, machine="another")
    os.kill(owner.pid, signal.SIGSTOP)
    began = time.monotonic()
    lease = Lease(tmp_path, BEAT)
    lease.take()
    assert time.monotonic() - began >= module.PATIENCE * BEAT
    os.kill(owner.pid, signal.SIGCONT)
    owner.stdin.close()
    assert owner.wait(10) == 0  # it has tried to give back what is not its own
    lease.check()
    lease.release()
    assert not list(tmp_path.iterdir())


def test_who_has_lost_it_says_so(tmp_path):
    first = Lease(tmp_path, BEAT)
    first.take()
    strange(tmp_path, started="1")
    second = Lease(tmp_path, BEAT)
    second.take()
    assert not first.held()
    with pytest.raises(UserError, match=f"process {os.getpid()} on .* has taken it over"):
        first.check()
    until = time.monotonic() + 10
    while not first.lost and time.monotonic() < until:
        time.sleep(BEAT / 10)
    assert first.lost
    assert not second.lost
    first.release()
    second.check()
    second.release()


@pytest.mark.parametrize("left", ["nothing", "an owner", "an heir, too"])
def test_of_several_at_once_one_gets_it(tmp_path, left):
    if left != "nothing":
        dead = Lease(tmp_path, BEAT)
        dead.take()
        strange(tmp_path, started="1")
    if left == "an heir, too":  # killed between the link that makes it one and taking the name
        heir = tmp_path / f"owner.after-{dead.token}"
        heir.write_text((tmp_path / NAME).read_text().replace(dead.token, "f" * 16))
    processes = [start(tmp_path) for _ in range(6)]
    answers = [answer(process) for process in processes]
    assert answers.count("owner\n") == 1, answers
    for process in processes:
        process.communicate("")
    if left != "nothing":
        dead.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{}", f"{0:0{DIGITS}}\n[]\n", f"{0:0{DIGITS}}\n{{\n"])
def test_what_is_no_lease(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UserError, match=r"owner\.json: does not say who owns the directory"):
        Lease(tmp_path, BEAT).take()


def test_links_are_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="does not say"):
        Lease(tmp_path, BEAT).take()
