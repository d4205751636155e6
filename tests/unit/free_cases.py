"""A run of free workers made again from its log, by a serial event loop in plain torch: the oracle."""

import torch

from hpcopt.problems.base import Draw


def replay(problem, x, segments, lr):
    """The model at the end of each segment of a log, that is, wherever the run paused.

    Args:
        problem: all N workers in this process, with equal weights.
        x: the start, (d,).
        segments: of each, the (gradients, applied) of every rank, see `hpcopt.methods.parts.owners.Log`.
        lr: η of a round.
    """
    ends = []
    for ranks in segments:
        x = Segment(problem, x, lr, ranks).end()
        ends.append(x)
    return ends


def replay_averaging(problem, x, averaged, rates, mixing):
    """The models of workers that average with their neighbours', (N, d), after all that is in the log.

    Args:
        problem, x: as in `replay`.
        averaged: see `hpcopt.methods.parts.async_mixing.AsyncMixing.trace`, of all ranks.
        rates: (worker, number of its step) -> η.
        mixing: W.
    """
    N = problem.share.total
    X, sent, made = x.repeat(N, 1), {}, [0] * N
    rows = {n: [row for row in averaged.tolist() if row[0] == n] for n in range(N)}
    total = len(rates) + len(averaged)
    while total:
        before = total
        for n in range(N):
            while rows[n] and rows[n][0][1] == made[n] and tuple(rows[n][0][2:]) in sent:
                _, _, m, step = rows[n].pop(0)
                X[n].lerp_(sent[m, step], float(mixing.at(step)[n, m]))
                total -= 1
            if (n, made[n]) in rates and not (rows[n] and rows[n][0][1] == made[n]):
                pieces = problem.gradient(n, X[n], Draw(made[n]))
                X[n].sub_(torch.cat([piece.flatten() for piece in pieces]), alpha=rates[n, made[n]])
                sent[n, made[n]] = X[n].clone()
                made[n] += 1
                total -= 1
        assert total < before, "the log refers to what never happens"
    return X


class Segment:
    """What happens between two pauses."""

    def __init__(self, problem, x, lr, ranks):
        self.problem, self.lr = problem, lr
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
        x = self.known[m][self.version[m]].clone().add_(g, alpha=-self.lr(round))
        self.used[m, n] += count
        self.version[m] += count
        self.known[m][self.version[m]] = x
        del self.to_apply[m][0]
        return True
