"""Free workers with delays by script; and their runs made again from the log, by serial loops in plain torch.

The latter are the oracle, and share nothing with the package but gradients.
"""

import torch

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.engine.build import read_files
from hpcopt.problems.base import Draw, Share
from hpcopt.storage.trace_file import TraceFile

from .plain_steps import Step, shortened

N, DIM, LR, ROUNDS = 4, 7, 0.02, 6
DELAYS = {
    "none": None,
    "one worker is slow": lambda origin, to, number: 5 * (origin == 1),
    "by slice": lambda origin, to, number: (3 * origin + 5 * to + number) % 7,
    "full links": lambda origin, to, number: 40,
}


def problem(dim=DIM, dtype=torch.float64):
    """All workers in this process."""
    recipe = hpcopt.LinearRegression(workers=N, dim=dim, rows_per_worker=20, batch_size=5)
    return recipe.bind(Share(range(N), N, seed=3, dtype=dtype))


def begun(bound, delay=None, **keys):
    """A method that has started, its state and its ports."""
    every = {"mode": "free", "lr": LR, "schedule": "exponential", "trace_out": True}
    method = hpcopt.DelayedSGD(**every | keys)
    method.files = read_files(method.settings)
    method.prepare(bound)
    ports = LocalPorts(N, bound.initial(), delay=delay)
    return method, method.start(bound, ports), ports


def rate(round):
    """η of a round, where no gradient's depends on its staleness."""
    return LR * 0.96**round


def free(path, bound, delay, rests, **keys):
    """A run of free workers, its trace in a file: its last state, and the models where it rests."""
    method, state, _ = begun(bound, delay, window=16, **keys)
    file = TraceFile(path, {"workers": N, "dim": bound.dim}, flush_seconds=0)
    models = {}
    for round in range(1, ROUNDS + 1):
        method.step(state)
        state.round = round
        if round in rests:
            method.pause(state)
            file.append(round, method.trace(state))
            models[round] = method.model(state).clone()
    file.close()
    return state, models


def again(path, bound, state=None, rounds=ROUNDS, **keys):
    """The same from its trace: its last state and all of its models.

    Args:
        path, bound: of the trace, the workers.
        state: with which it goes on, of `snapshot`.
        rounds: after which it ends.
        keys: settings.
    """
    method, begin, _ = begun(bound, mode="trace", trace=str(path), trace_out=False, **keys)
    if state is not None:  # as a checkpoint does it
        for name, (_, tensor) in begin.tensors().items():
            tensor.copy_(state[name])
        begin.round = int(state["round"])
    models = {}
    for round in range(begin.round + 1, rounds + 1):
        assert method.step(begin).done == (round == ROUNDS)
        begin.round = round
        models[round] = method.model(begin).clone()
    return begin, models


def snapshot(state):
    """What a checkpoint keeps."""
    return {name: tensor.clone() for name, (_, tensor) in state.tensors().items()} | {"round": state.round}


def replay(problem, x, segments, lr, **update):
    """The model at the end of each segment of a log, that is, wherever the run paused.

    Args:
        problem: all N workers in this process, with equal weights.
        x: the start, (d,).
        segments: of each, the (gradients, applied) of every rank, see `Owners.trace`.
        lr: η of a round.
        update: settings of the steps, if they are not SGD's: these are NumPy's, whose last bits may differ.
    """
    ends, steps = [], [Step(**update | {"clip": 0}) for _ in range(problem.share.total)]
    for ranks in segments:
        x = Segment(problem, x, lr, ranks, update and steps, update.get("clip")).end()
        ends.append(x)
    return ends


def replay_averaging(problem, x, segments, lr, mixing, **update):
    """The models of workers that average with their neighbours', (N, d), at the end of each segment of a log.

    Args:
        problem, x, lr, update: as in `replay`.
        segments: of each, the (gradients, averaged) of every rank, see `AsyncMixing.trace`.
        mixing: W.
    """
    N = problem.share.total
    X, made, ends, steps = x.repeat(N, 1), [0] * N, [], [Step(**update) for _ in range(N)]
    for ranks in segments:
        gradients, averaged = ([row for one in ranks for row in one[kind].tolist()] for kind in (0, 1))
        rounds = {(n, draw): round for n, draw, round, *_ in gradients}
        rows = {n: [row for row in averaged if row[0] == n] for n in range(N)}
        sent, total = {}, len(gradients) + len(averaged)
        while total:
            before = total
            for n in range(N):
                while rows[n] and rows[n][0][1] == made[n] and tuple(rows[n][0][2:4]) in sent:
                    _, _, m, step, _ = rows[n].pop(0)
                    X[n].lerp_(sent[m, step], float(mixing.at(step)[n, m]))
                    total -= 1
                if (n, made[n]) in rounds and not (rows[n] and rows[n][0][1] == made[n]):
                    pieces = problem.gradient(n, X[n], Draw(made[n]))
                    g, rate = torch.cat([piece.flatten() for piece in pieces]), lr(rounds[n, made[n]])
                    if update:
                        X[n] = torch.from_numpy(steps[n](X[n].numpy(), g.numpy(), rate))
                    else:
                        X[n].sub_(g, alpha=rate)
                    sent[n, made[n]] = X[n].clone()
                    made[n] += 1
                    total -= 1
            assert total < before, "the log refers to what never happens"
        ends.append(X.clone())
    return ends


class Segment:
    """What happens between two pauses."""

    def __init__(self, problem, x, lr, ranks, steps, clip):
        self.problem, self.lr, self.steps, self.clip = problem, lr, steps, clip
        self.parts = [part for part in torch.tensor_split(x, problem.share.total) if len(part)]
        # of every slice the versions so far
        self.known = [{0: part.clone()} for part in self.parts]
        self.version = [0] * len(self.parts)
        self.to_make = {n: [] for n in range(problem.share.total)}
        self.to_apply = [[] for _ in self.parts]
        for gradients, applied in ranks:
            for n, draw, *versions in gradients.tolist():
                self.to_make[n].append((draw, versions))
            for m, n, count, round in applied.tolist():
                self.to_apply[m].append((n, count, round))
        self.made = {n: [] for n in self.to_make}
        self.used = {(m, n): 0 for m in range(len(self.parts)) for n in self.to_make}

    def end(self):
        """The model when all is applied."""
        while any(self.to_make.values()) or any(self.to_apply):
            moved = [self.make(n) for n in self.to_make] + [self.apply(m) for m in range(len(self.parts))]
            assert any(moved), "the log refers to what never happens"
        used = {self.used[m, n] == len(made) for n, made in self.made.items() for m in range(len(self.parts))}
        assert used == {True}, "a gradient was lost"
        return torch.cat([known[version] for known, version in zip(self.known, self.version, strict=True)])

    def make(self, n):
        """The next gradient of worker n, once all that it was of is there."""
        if not self.to_make[n]:
            return False
        draw, versions = self.to_make[n][0]
        if not all(version in known for version, known in zip(versions, self.known, strict=True)):
            return False
        x = torch.cat([known[version] for version, known in zip(versions, self.known, strict=True)])
        gradient = torch.cat([piece.flatten() for piece in self.problem.gradient(n, x, Draw(draw))])
        if self.clip:
            gradient = torch.from_numpy(shortened(gradient.numpy(), self.clip))
        self.made[n].append(torch.tensor_split(gradient, self.problem.share.total))
        del self.to_make[n][0]
        return True

    def apply(self, m):
        """The next gradients that slice m's owner applied, once they are made."""
        if not self.to_apply[m]:
            return False
        n, count, round = self.to_apply[m][0]
        first = self.used[m, n]
        if len(self.made[n]) < first + count:
            return False
        g = self.made[n][first][m].clone()
        for number in range(first + 1, first + count):
            g += self.made[n][number][m]
        x = self.known[m][self.version[m]].clone()
        if self.steps:
            x = torch.from_numpy(self.steps[m](x.numpy(), g.numpy(), self.lr(round)))
        else:
            x.add_(g, alpha=-self.lr(round))
        self.used[m, n] += count
        self.version[m] += count
        self.known[m][self.version[m]] = x
        del self.to_apply[m][0]
        return True
