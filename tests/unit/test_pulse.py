"""Signs of life: who has stopped is told by the age of its file, who is behind by what it says, and once."""

import os
import time

import pytest

from hpcopt.control.pulse import SHOWN, Pulse, Sign, verdict
from hpcopt.control.watchdog import Watchdog


def sign(rank, beats=7):
    return Sign(beats, f"rank {rank} of 4 on n{rank}", f"round {beats}")


def aged(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_rank_whose_sign_is_old_is_named_once(tmp_path):
    pulses = [Pulse(tmp_path, rank, 4, 300.0, lambda rank=rank: sign(rank, 7 - rank)) for rank in range(3)]
    aged(tmp_path / "2", 200)  # and of rank 3 nothing is known
    (line,) = pulses[1].verdict()
    assert line.startswith("rank 2 of 4 on n2: no sign of life for 200.")
    assert "the last one from round 5" in line
    assert pulses[0].verdict() == []
    for pulse in pulses:
        pulse.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["told"]


def test_a_sign_is_given_again_and_again_and_nothing_is_left(tmp_path):
    folder, beats = tmp_path / "alive", [1000]
    folder.mkdir()
    pulse = Pulse(folder, 0, 1, 0.1, lambda: sign(0, beats[0]))
    beats[0] = 5  # shorter than what was there
    end = time.monotonic() + 30
    while sign(0, 5) not in [found for _, found in pulse._signs()]:
        assert time.monotonic() < end
    pulse.stop()
    assert not folder.exists()


def test_without_files_nobody_is_named(tmp_path):
    pulse = Pulse(tmp_path / "absent", 0, 2, 300.0, lambda: sign(0))
    assert pulse.verdict() == []
    pulse.stop()


def test_those_who_are_behind_are_named_where_all_live():
    signs = [(0.1, sign(rank, beats)) for rank, beats in enumerate([7, 5, 7, 5])]
    assert verdict(signs, 9.0) == [
        f"rank {rank} of 4 on n{rank}: behind the others, in round 5" for rank in (1, 3)
    ]
    assert verdict(signs[::2], 9.0) == verdict([], 9.0) == []
    assert verdict([(99.0, sign(0))] * (SHOWN + 3), 9.0)[-1] == "and 3 more"


@pytest.mark.parametrize("patience", [0.5, 1e12])
def test_a_watchdog_that_listens_leaves_nothing(tmp_path, patience):
    folder = tmp_path / "alive"
    folder.mkdir()
    watchdog = Watchdog("rank 0 of 1 on here", patience)
    watchdog.listen(folder, 0, 1)
    watchdog.beat("round 3")
    assert (folder / "0").read_text().startswith('[0, "rank 0 of 1 on here", "the start"]')
    watchdog.stop()
    assert not folder.exists()
