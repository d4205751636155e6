"""Agreement and stopping together."""

import os
import signal
import time

import numpy as np
import pytest

from hpcopt.comm.gather import gather_rows
from hpcopt.comm.timing import fastest
from hpcopt.control.agree import agree, agreed
from hpcopt.control.stopping import Stop, StopAgreement
from hpcopt.errors import NothingToResume, UserError

pytestmark = pytest.mark.mpi


def test_one_rank_fails_and_all_raise_naming_it(comm):
    last = comm.size - 1
    with pytest.raises(UserError, match="bad thing") as caught:
        agree(comm, comm.rank != last, "bad thing")
    assert len(set(comm.allgather(str(caught.value)))) == 1
    if comm.size > 1:
        assert f"rank {last} of {comm.size}" in str(caught.value)
    agree(comm, True, "never shown")


def test_the_same_failure_everywhere_is_told_once(comm):
    with pytest.raises(UserError) as caught:
        agree(comm, False, "the file is missing")
    assert str(caught.value) == "the file is missing"


def test_agreed_passes_the_kind_of_error_on(comm):
    def fails_on_rank_0():
        with agreed(comm):
            if comm.rank == 0:
                raise NothingToResume("nothing")

    with pytest.raises(NothingToResume):
        fails_on_rank_0()


def test_gather_rows_orders_by_worker(comm):
    workers = comm.size + 2
    from hpcopt.ground.placement import block

    mine = block(workers, comm.size, comm.rank)
    rows = np.array([[w, w * w] for w in mine], dtype=float).reshape(-1, 2)
    expected = [[w, w * w] for w in range(workers)]
    assert gather_rows(comm, rows).tolist() == expected


def test_a_signal_on_one_rank_stops_all_in_the_same_round(comm):
    stopping = StopAgreement(comm, 0)
    stopped = None
    for round in range(1, 10_000):
        if round == 10 and comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        if stopping.poll(round) is Stop.SIGNAL:
            stopped = round
            break
    stopping.close()
    assert stopped is not None
    assert stopped >= 10
    assert len(set(comm.allgather(stopped))) == 1


def test_c14_a_signal_in_a_long_round_stops_all_at_its_end(comm, monkeypatch):
    monkeypatch.setattr("hpcopt.control.stopping.WINDOW_SECONDS", 0.0)  # so that every round is long
    stopping = StopAgreement(comm, 0)
    stops = []
    for round in range(1, 6):
        if round == 5 and comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        stops.append(stopping.poll(round))
    stopping.close()
    assert stops == [Stop.NO] * 4 + [Stop.SIGNAL]


def test_nobody_asks_and_nobody_stops(comm):
    stopping = StopAgreement(comm, 0)
    assert {stopping.poll(round) for round in range(200)} == {Stop.NO}
    stopping.close()


def test_the_fastest_way_is_that_of_the_slowest_rank_and_possible_everywhere(comm):
    last, wait = comm.size - 1, 0.02

    def sleep(seconds, own=0.0):
        return lambda: time.sleep(own if comm.rank == last else seconds)

    ways = {"even": sleep(wait, wait), "slow on one": sleep(0.0, 5 * wait), "slow": sleep(4 * wait, 4 * wait)}
    assert fastest(comm, ways, remembered="") == "even"
    assert fastest(comm, ways, remembered="slow") == "slow"
    some = {"even": sleep(wait, wait), "not on one": None if comm.rank == last else sleep(0.0)}
    assert fastest(comm, some, remembered="") == "even"
    assert fastest(comm, some, remembered="not on one") == "even"
