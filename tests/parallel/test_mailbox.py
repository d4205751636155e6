"""Mailboxes over MPI: nothing torn, lost or doubled, and the twin's numbers where a script fixes all."""

import os
import re
import signal
import time

import numpy as np
import pytest
import torch
from mpi4py import MPI

import hpcopt
from hpcopt.comm.mailbox import mpi_mailbox
from hpcopt.comm.mailbox.choice import order
from hpcopt.comm.mailbox.local_mailbox import LocalMailbox
from hpcopt.comm.mailbox.mpi_mailbox import MPIMailbox
from hpcopt.comm.mailbox.post import Post
from hpcopt.comm.mailbox.windows import Windows
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.ports import Agreed
from hpcopt.comm.staging import Staging
from hpcopt.control.stopping import StopAgreement
from hpcopt.errors import Interrupted
from hpcopt.ground.placement import Placement
from tests.parallel.conftest import first_ranks
from tests.parallel.factories import Counting

pytestmark = pytest.mark.mpi
CPU = torch.device("cpu")
LONG = "HPCOPT_LONG_TESTS" in os.environ
MESSAGES = 10_000 if LONG else 1000
WORKERS = 5
SECONDS = 60
"""after which nobody is waited for"""


def agreed(port, made, goal):
    """Asks until there is an answer."""
    deadline = time.monotonic() + SECONDS
    while (found := port.agree(made, goal)) is None:
        assert time.monotonic() < deadline, f"no sum has reached {goal}"
        time.sleep(0.001)
    return found


def barrier(comm, port, number):
    """The number-th one, from 1, made by the port's thread: no two threads make MPI calls at once."""
    agreed(port, number, number * comm.size)


def opened(comm, like, transport, workers=WORKERS, **options):
    placement = Placement.even(workers, comm.size, comm.rank)
    return MPIMailbox(comm, placement, Staging(CPU), like, transport=transport, **options), placement.here


def content(origin, to, number, size):
    """Integers, which add up exactly, that depend on all of it: a checksum of itself."""
    seed = (origin * 1009 + to) * 100_003 + number
    return (torch.arange(size, dtype=torch.float64) * 7919 + seed * 104_729) % 1_000_003


def length(to, size):
    return size - to  # slices differ in length


class Reader:
    """Checks all that is collected, and counts it."""

    def __init__(self, size):
        self.size, self.got, self.parcels = size, {}, 0

    def take(self, mails):
        for mail in mails:
            pair, several = (mail.origin, mail.to), range(mail.number, mail.number + mail.count)
            assert mail.number == self.got.get(pair, 0), "lost, doubled or out of order"
            want = sum(content(*pair, number, length(mail.to, self.size)) for number in several)
            assert torch.equal(mail.vector, want), "torn, or merged wrongly"
            assert mail.stamp == 3 * mail.number
            assert mail.stamps == sum(3 * number for number in several)
            self.got[pair] = mail.number + mail.count
            self.parcels += 1


def interleave(comm, transport, messages, size, workers=WORKERS, pauses=2, wait=0.002, depth=4):
    """Random puts and collects on ranks of different pace; then everything has arrived, once."""
    port, here = opened(comm, torch.zeros(size, dtype=torch.float64), transport, workers, depth=depth)
    assert port.transport == transport
    random, reader = np.random.default_rng([comm.rank, comm.size, messages]), Reader(size)
    puts = dict.fromkeys(((origin, to) for origin in here for to in range(workers)), 0)

    def put(*pair):
        port.put(*pair, content(*pair, puts[pair], length(pair[1], size)), 3 * puts[pair])
        puts[pair] += 1

    for part in range(pauses):
        for _ in range(3 * depth):  # nobody collects: the link is full for sure
            put(here[0], here[0])
        for _ in range(messages // workers * len(here) // pauses):
            put(int(random.choice(here)), int(random.integers(workers)))
            if random.random() < 0.3:
                reader.take(port.collect())
            # the first rank is slow, and all of them jitter
            if random.random() < (0.05 if comm.rank else 0.2):
                time.sleep(wait * random.random())
        if part:
            port.pause()
            reader.take(port.collect())
            assert port._thread is None  # other ports may make calls
            reader.take(port.collect())
            assert port._thread is not None
    port.pause()
    assert port._thread is None
    sent, merged = comm.allreduce([puts]), comm.allreduce(port.merged)
    every = {pair: count for one in sent for pair, count in one.items() if count and pair[1] in here}
    assert reader.got == every
    assert comm.allreduce(reader.parcels) == sum(sum(one.values()) for one in sent) - merged
    assert merged >= comm.size * pauses * (2 * depth - 1)
    assert port.counter.calls == sum(puts.values())
    # after the next drain everybody knows what was collected
    port.pause()
    assert {pair: port.collected(*pair) for pair in puts} == puts
    port.free()


@pytest.mark.parametrize("transport", ["windows", "messages"])
def test_random_interleavings(comm, transport):
    interleave(comm, transport, MESSAGES, 300)


@pytest.mark.parametrize("threaded", [True, False])
def test_what_arrives_is_received_at_once(comm, threaded):
    """While nobody collects, if there is a thread; and answered by another mailbox."""
    size, messages = 30, 100
    like = torch.zeros(size, dtype=torch.float64)
    answers, here = opened(comm, like, "auto", threaded=threaded)
    reader, inside, answered = Reader(size), [], 0

    def receive(mail):
        assert not inside, "two at a time"
        inside.append(mail)
        reader.take([mail])
        time.sleep(1e-4)
        answers.put(mail.to, mail.origin, mail.vector[: length(mail.origin, size)], 0)
        inside.clear()

    port, _ = opened(comm, like, "auto", receive=receive, threaded=threaded)
    for number in range(messages):
        for origin in here:
            to = (origin + number) % WORKERS  # in turn, itself among them
            port.put(
                origin, to, content(origin, to, number // WORKERS, length(to, size)), 3 * (number // WORKERS)
            )
            if number % 3 == 0:
                assert port.collect() == []
                answered += sum(mail.count for mail in answers.collect())
    if threaded:
        deadline = time.monotonic() + SECONDS
        while sum(reader.got.values()) < messages * len(here):
            assert time.monotonic() < deadline, "nothing was received"
            time.sleep(1e-3)
        barrier(comm, port, 1)
    port.pause()
    assert port.collect() == []
    assert reader.got == {(origin, to): messages // WORKERS for origin in range(WORKERS) for to in here}
    answers.pause()
    answered += sum(mail.count for mail in answers.collect())
    assert comm.allreduce(answered) == comm.allreduce(reader.parcels)
    port.free()
    answers.free()


@pytest.mark.mpi(min_size=4)
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("transport", ["windows", "messages"])
def test_random_interleavings_between_hosts(comm, transport, ranks):
    """`tests/slurm` has two hosts, of two ranks each."""
    if len(set(comm.allgather(MPI.Get_processor_name()))) != 2:
        pytest.skip("needs two hosts")
    in_turn = comm.Split(0, key=(0, 2, 1, 3)[comm.rank])  # a rank of each host first
    with first_ranks(in_turn, ranks) as sub:
        if sub is not None:
            interleave(sub, transport, MESSAGES, 300)
    in_turn.Free()


@pytest.mark.parametrize("transport", ["windows", "messages"])
def test_vectors_in_pieces(comm, transport, monkeypatch):
    """Messages have at most so many bytes, here few."""
    monkeypatch.setattr("hpcopt.comm.gather.MAX_MESSAGE", 1000)
    interleave(comm, transport, 200, 700, workers=comm.size)


@pytest.mark.skipif(not LONG, reason="HPCOPT_LONG_TESTS is not set")
@pytest.mark.parametrize("transport", ["windows", "messages"])
def test_long_vectors(comm, transport):
    interleave(comm, transport, 60, 8_000_000, workers=comm.size, wait=0.2, depth=2)


@pytest.mark.parametrize("full", ["add", "newest"])
@pytest.mark.parametrize("transport", ["windows", "messages"])
def test_a_script_has_the_twins_numbers(comm, transport, full):
    """Nobody collects while puts are made, so what is merged depends on the ring alone."""
    links, depth = [(o, t) for o in range(WORKERS) for t in range(WORKERS) if (o + 2 * t) % 3], 2
    like = torch.zeros(9, dtype=torch.float64)
    port, here = opened(comm, like, transport, links=links, depth=depth, full=full)
    twin = LocalMailbox(WORKERS, like, links, depth, full=full)
    script, vectors = np.random.default_rng(5), torch.Generator().manual_seed(5)
    for part in range(1, 7):
        for _ in range(60):
            origin, to = links[int(script.integers(len(links)))]
            vector = torch.randn(9, dtype=torch.float64, generator=vectors)
            stamp = int(script.integers(100))
            twin.put(origin, to, vector, stamp)
            if origin in here:
                port.put(origin, to, vector, stamp)
        barrier(comm, port, part)
        port.pause()
        twin.pause()
        got = {(m.origin, m.to, m.number): m for m in port.collect()}
        want = {(m.origin, m.to, m.number): m for m in twin.collect() if m.to in here}
        assert got.keys() == want.keys()
        for key, mail in want.items():
            mine = got[key]
            assert (mine.count, mine.stamp, mine.stamps) == (mail.count, mail.stamp, mail.stamps)
            assert torch.equal(mine.vector, mail.vector)
        port.pause()  # nobody goes on before it is known that the entries are free
    assert comm.allreduce(port.merged) == twin.merged > 0
    assert comm.allreduce(port.counter.bytes_workers) == twin.counter.bytes_workers
    port.free()


def test_vectors_go_through_host_memory_where_mpi_cannot_reach_them(comm, monkeypatch):
    """As those of a GPU do, through one buffer, which the next put uses again."""
    passing = torch.empty(20, dtype=torch.float64)
    monkeypatch.setattr(Staging, "to_host", lambda self, vector: passing[: len(vector)].copy_(vector))
    interleave(comm, "windows", 200, 20)


def test_a_rank_that_collects_nothing_stops_nobody(comm):
    """Its ring is full; what others put there is added up, and memory does not grow."""
    port, here = opened(comm, torch.zeros(50, dtype=torch.float64), "auto", workers=comm.size, depth=3)
    me, puts = here[0], 400
    for number in range(puts):
        port.put(me, 0, content(me, 0, number, 50), 3 * number)
    assert port.merged >= puts - 2 * 3 - 1
    barrier(comm, port, 1)  # nobody waited for rank 0
    reader = Reader(50)
    port.pause()
    reader.take(port.collect())
    assert reader.got == ({(origin, 0): puts for origin in range(comm.size)} if me == 0 else {})
    port.free()


def test_the_run_s_port_says_what_it_chose(comm):
    like = torch.zeros(10)
    placement = Placement.even(WORKERS, comm.size, comm.rank)
    ports = MPIPorts(comm, placement, Staging(CPU), like, "mpi", overlap=False, remembered={})
    port = ports.mailbox(like)
    assert ports.chosen["mailbox"] == port.transport == "windows"
    for origin in placement.here:
        port.put(origin, (origin + 1) % WORKERS, torch.full((10,), origin + 1.0), origin)
    port.pause()
    assert {m.to: (m.origin, float(m.vector[9])) for m in port.collect()} == {
        to: ((to - 1) % WORKERS, (to - 1) % WORKERS + 1.0) for to in placement.here
    }
    assert ports.counters()["mailbox"].calls == placement.n
    port.collect()
    assert port._thread is not None
    ports.free()  # whoever still carries
    assert port._thread is None


def test_what_was_chosen_is_used_again_where_it_may_be(comm):
    assert order("auto", "", one_host=True) == order("auto", "windows", one_host=True)
    assert order("auto", "", one_host=True) == ["windows", "messages"]
    assert order("auto", "", one_host=False) == order("auto", "windows", one_host=False)
    assert order("auto", "", one_host=False) == order("auto", "messages", one_host=True)
    assert order("windows", "messages", one_host=False) == ["windows"]
    remembered = {"mailbox": "messages"}
    placement = Placement.even(WORKERS, comm.size, comm.rank)
    ports = MPIPorts(comm, placement, Staging(CPU), torch.zeros(10), "mpi", False, remembered)
    assert ports.mailbox(torch.zeros(10)).transport == ports.chosen["mailbox"] == "messages"
    ports.free()


@pytest.mark.parametrize("transport", ["windows", "messages"])
def test_all_ranks_agree_on_the_same_sums(comm, transport):
    """Whatever their pace, and when they ask; through pauses; and a wish before the goal."""
    wishes, made, goals = [0], 0, [6 * k * comm.size for k in range(1, 13)]
    port, here = opened(comm, torch.zeros(10), transport, wish=lambda: wishes[0])
    random, found, own = np.random.default_rng(comm.rank), [], []
    for k, goal in enumerate(goals):
        deadline = time.monotonic() + SECONDS
        while (sum := port.agree(made, goal)) is None:
            assert time.monotonic() < deadline
            time.sleep((0.002 if comm.rank else 0.006) * random.random())
            made += 1
            port.put(here[0], 0, torch.zeros(10), 0)
        found.append(sum)
        own.append(made)
        if k % 5 == 3:
            port.pause()
            port.collect()
            assert port._thread is None
    port.pause()
    assert len(set(comm.allgather(tuple(found)))) == 1
    sums = [sum.made for sum in found]
    assert sums == sorted(sums)
    assert all(sum >= goal for sum, goal in zip(sums, goals, strict=True))
    # what a rank makes until it has heard is not lost: it is in the sums of later goals
    assert (np.array(comm.allgather(own)).sum(0) >= sums).all()
    total = comm.allreduce(made)
    assert agreed(port, made, total).made == total
    assert {sum.wish for sum in found} == {0}
    wishes[0] = comm.rank
    if comm.size > 1:
        wished = agreed(port, made, total + 1000)
        assert wished.made == total
        assert wished.wish > 0
        assert len(set(comm.allgather(wished))) == 1
    port.free()


@pytest.mark.mpi(min_size=2)
def test_who_never_agrees_holds_up_no_pause(comm):
    """The others' sums wait for it; those that end the pause are among them."""
    port, here = opened(comm, torch.zeros(10), "windows")
    for part in range(1, 4):
        goal = part * (comm.size - 1)
        if comm.rank:
            port.put(here[0], 0, torch.zeros(10), 0)
            port.agree(part, goal)
        else:
            time.sleep(0.03)
        port.pause()
        assert comm.rank == 0 or port.agree(part, goal) == Agreed(goal, 0)
        port.pause()
    port.free()


def test_a_signal_travels_in_these_sums(comm, mpi_tmp_path, monkeypatch):
    """Between pauses the loop makes no call of its own; the run stops together, and goes on."""
    step, out, problem = Counting.step, mpi_tmp_path / "run", hpcopt.Quadratic(WORKERS, "power", 5)

    def signalled(method, state):
        if state.round == 4 and comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(method, state)

    monkeypatch.setattr(StopAgreement, "poll", lambda self, round: pytest.fail("asked the ranks"))
    monkeypatch.setattr(Counting, "step", signalled)
    with pytest.raises(Interrupted, match=r"signal after round") as caught:
        hpcopt.run(Counting(), problem, comm=comm, out=out, rounds=4000, evaluate_every=1000)
    (stopped,) = {int(re.findall(r"round (\d+)", text)[0]) for text in comm.allgather(str(caught.value))}
    overrides = (f"run.rounds={stopped + 3}",)
    file = hpcopt.resume(out, method=Counting, problem=problem, comm=comm, overrides=overrides)
    about = hpcopt.load(file).attrs
    assert (about["stopped_by"], about["last_round"]) == ("rounds", stopped + 3)


def test_several_mailboxes_of_a_rank_take_turns(comm, monkeypatch):
    """One thread at a time makes MPI calls."""
    turn, inside, met = Post.turn, [], []

    def watched(post, absorb):
        met.extend(inside)
        inside.append(post)
        time.sleep(1e-4)
        moved = turn(post, absorb)
        inside.remove(post)
        return moved

    ports = [opened(comm, torch.zeros(10), transport)[0] for transport in ("windows", "messages")]
    here = Placement.even(WORKERS, comm.size, comm.rank).here
    monkeypatch.setattr(Post, "turn", watched)
    for number in range(100):
        for port in ports:
            port.put(here[0], (here[0] + number) % WORKERS, torch.zeros(10), number)
            port.collect()
        time.sleep(1e-4)
    for port in ports:
        port.pause()
    assert not met
    for port in ports:
        port.free()


@pytest.mark.mpi(min_size=2)
def test_windows_that_are_wrong_are_found_and_not_used(comm, monkeypatch):
    send = Windows.send

    def torn(wire, link, parcel):
        if comm.rank == 1:
            parcel.bytes[parcel.used.size - 1] ^= 64
        send(wire, link, parcel)

    monkeypatch.setattr(Windows, "send", torn)
    port, _ = opened(comm, torch.zeros(10), "auto")
    assert port.transport == "messages"
    port.free()
    with pytest.raises(RuntimeError, match=r"does not carry vectors .* windows: worker"):
        opened(comm, torch.zeros(10), "windows")


@pytest.mark.mpi(min_size=2)
def test_what_goes_wrong_in_the_thread_is_raised_where_somebody_can_act(comm, monkeypatch):
    port, here = opened(comm, torch.zeros(10), "windows")
    if comm.rank == 0:
        wrong = ValueError("broken")
        monkeypatch.setattr(port._wire, "arrived", lambda: (_ for _ in ()).throw(wrong))
        port.collect()
        port._thread.join(30)
        with pytest.raises(ValueError, match="broken"):
            port.put(here[0], 0, torch.zeros(10), 0)
        monkeypatch.undo()
        port._error = port._thread = None
    port.free()


def test_without_threads_the_calls_carry(comm, monkeypatch):
    monkeypatch.setattr(mpi_mailbox.MPI, "Query_thread", lambda: MPI.THREAD_SERIALIZED)
    port, here = opened(comm, torch.zeros(40, dtype=torch.float64), "auto", workers=comm.size)
    reader, me = Reader(40), here[0]
    for number in range(50):
        to = comm.size - 1
        port.put(me, to, content(me, to, number, length(to, 40)), 3 * number)
        reader.take(port.collect())
    assert agreed(port, 50, 50 * comm.size) == Agreed(50 * comm.size, 0)
    port.pause()
    reader.take(port.collect())
    assert port._thread is None
    assert reader.got == ({(origin, me): 50 for origin in range(comm.size)} if me == comm.size - 1 else {})
    port.free()


@pytest.mark.parametrize("transport", ["windows", "messages"])
def test_who_puts_again_and_again_leaves_the_thread_its_turns(comm, monkeypatch, transport):
    """What was put before the last look was carried before the next, if there was room for it."""
    monkeypatch.setattr(mpi_mailbox, "PATIENCE_SECONDS", SECONDS)
    port, here = opened(comm, torch.zeros(8, dtype=torch.float64), transport)
    puts, carried, turn = [0], [0], Post.turn

    def watched(self, absorb):
        seen = puts[0]
        moved = turn(self, absorb)
        carried.append(seen)
        return moved

    monkeypatch.setattr(Post, "turn", watched)
    for number in range(1, 300):
        puts[0] = number
        port.put(here[0], (here[0] + 3) % WORKERS, torch.zeros(8, dtype=torch.float64), number)
        port.collect()
        assert number == 1 or carried[-1] >= number - 1
    port.free()
