"""Workers computed together against the same workers one after the other."""

import json
from itertools import accumulate, pairwise

import pytest
import torch
from torch import nn

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.problems import choice, groups, network_evaluation, network_passes
from hpcopt.problems.base import Draw, Share
from hpcopt.problems.choice import IN_TURN, KINDS, MAPPED, TOGETHER

N, F, C = 7, 6, 3
HEAD = {"private": ["head.*"]}


class Net(nn.Module):
    """Two layers, with BatchNorm or without."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.body = nn.Linear(F, 5)
        self.norm = nn.BatchNorm1d(5) if normed else nn.Identity()
        self.head = nn.Linear(5, C)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.body(x))))


def flipped(x):
    """An augmentation that sees the whole batch."""
    return x.flip(-1) - x.mean(0)


def recipe(normed=True, module=None, **keys):
    torch.manual_seed(0)
    module = Net(normed) if module is None else module
    rows = [range(10 * i, 10 * i + (10 if i % 3 else 4)) for i in range(N)]  # two kinds of batches
    x, y = torch.randn(10 * N, F), torch.arange(10 * N) % C
    data = (x, y), (x[:33], y[:33])
    keys = {"workers": N, "batch_size": 7, "weights": "rows", "rows": rows} | keys
    return hpcopt.Network(module, nn.functional.cross_entropy, *data, **keys)


CASES = {
    "batchnorm": {"normed": True, "regularisation": 0.3, "logit_adjustment": 1.0} | HEAD,
    "augmented": {"normed": False, "augment": flipped, "regularisation": 0.1} | HEAD,
    "full": {"normed": False, "batch_size": "full", "rows": None, "logit_adjustment": 0.5},
}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Small groups, several pieces."""
    monkeypatch.setattr(groups, "FEWEST", 2)
    monkeypatch.setattr(groups, "ROWS", 21)
    monkeypatch.setattr(choice, "LONG", 1.0)
    monkeypatch.setattr(network_passes, "PIECE", 4)
    monkeypatch.setattr(network_evaluation.NetworkEvaluation, "_piece", 4)


def both(dtype=torch.float64, way=TOGETHER, **keys):
    """The same problem in turn and together."""
    problems = [recipe(**keys).bind(Share(range(N), N, 3, dtype)) for _ in range(2)]
    together(problems[1], way)
    return problems


def together(problem, way=TOGETHER):
    for kind in (*KINDS, "evaluation"):
        problem.take(kind, way if kind == "gradients" else TOGETHER)


F32 = torch.float32


@pytest.mark.parametrize("way", [TOGETHER, MAPPED])
@pytest.mark.parametrize(("case", "dtype"), [*((case, torch.float64) for case in CASES), ("batchnorm", F32)])
def test_numbers_are_those_in_turn(case, dtype, way):
    alone, stacked = both(dtype, way, **CASES[case])
    assert max(len(group.workers) for group in stacked.groups([0] * N)) > 1
    torch.manual_seed(1)
    X, V = torch.randn(2, N, alone.dim, dtype=dtype) * 0.3
    x, v = X[0], V[0]

    def numbers(problem):
        for draw in (Draw(3, 1, 2), None) if case == "batchnorm" else (Draw(3),):
            yield from (problem.losses(X, draw), problem.losses(x, draw))
            yield from (problem.gradients(X, draw), problem.gradients(x, draw, weighted=True))
            yield from (problem.total_gradient(X, draw), problem.total_gradient(x, draw))
            yield from (problem.hvps(X, V, draw), problem.hvps(x, v, draw, weighted=True))
            yield from (problem.total_hvp(X, V, draw), problem.total_hvp(x, v, draw))
        mean = problem.buffers.mean(0) if problem.buffers.shape[1] else None
        for evaluation in (problem.evaluate(X), problem.evaluate(x, mean), problem.evaluate(x.expand(N, -1))):
            for values in (evaluation.values, evaluation.weights, evaluation.rows):
                yield from values.values()
        yield torch.tensor(problem.samples)
        for part in ("all", "shared", "private"):
            rows = {}
            for group in problem.groups([0] * N):
                g = problem.stacked_gradient(group, group.of(X), Draw(9), part)
                rows |= dict(zip(group.workers, zip(*g, strict=True), strict=True))
            yield torch.cat([g_p.ravel() for i in range(N) for g_p in rows[i]])

    def one_of_each(problem):  # workers of a group are asked for again and again: buffers move on
        kept = problem.buffers.clone()
        for value in numbers(problem):
            yield from (value.clone(), problem.buffers.clone())
            problem.buffers.copy_(kept)

    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    for k, (a, b) in enumerate(zip(one_of_each(alone), one_of_each(stacked), strict=True)):
        scale = float(a.abs().max()) if a.numel() else 0.0
        assert torch.allclose(a.double(), b.double(), rtol=0, atol=rounding * max(1, scale)), k
    taken = {"gradients": way, "hvps": way, "evaluation": TOGETHER}
    assert stacked._together == dict.fromkeys(KINDS, TOGETHER) | taken
    assert not stacked._seeds.used


METHODS = [
    hpcopt.DPSGD(lr=0.2, local_steps=3, clip=0.5, momentum=0.5),
    hpcopt.DePRL(lr=0.2, lr_head=0.1, head_steps=2, body_epochs=1, clip=0.2, weight_decay=0.1),
    hpcopt.DePRL(lr=0.2, lr_head=0.1, body_steps=2, order="together", clip=0.2),
    hpcopt.FedAvg(lr=0.2, local_epochs=2, momentum=0.5, clip=0.5, before_mixing=True),
    hpcopt.GradientTracking(lr=0.2),
    hpcopt.AllreduceSGD(lr=0.2),
]


@pytest.mark.parametrize("way", [TOGETHER, MAPPED])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_methods_make_the_same_steps(method, way):
    found = []
    for problem in both(way=way, **CASES["batchnorm"]):
        method.prepare(problem)
        state = method.start(problem, LocalPorts(N, problem.initial()))
        for _ in range(2):
            method.step(state)
            state.round += 1
        models = {"model": method.model(state), "buffers": problem.buffers} | method.others(state)
        found.append({name: value.clone() for name, value in models.items()})
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=0, atol=1e-12), name


def test_what_begins_to_draw_is_seeded_from_then_on():
    drawing = []

    class Late(Net):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, training=self.training and bool(drawing))

    def bound():
        return recipe(module=Late(True)).bind(Share(range(N), N, 3))

    problems, x = [bound() for _ in range(3)], None
    drawing.append(1)
    problems.append(bound())  # draws from the start
    for problem, way in zip(problems, (TOGETHER, MAPPED), strict=False):
        together(problem, way)
    assert [problem._seeds.used for problem in problems] == [False] * 3 + [True]
    state = torch.get_rng_state()
    x = problems[0].initial()
    for of in (
        lambda problem: problem.gradients(x, Draw(1)),
        lambda problem: problem.losses(x, Draw(1)),
        lambda problem: problem.hvps(x, x, Draw(1)),
        lambda problem: problem.buffers,
    ):
        found = [of(problem) for problem in problems]
        assert all(torch.equal(found[-1], other) for other in found)
    assert all(problem._seeds.used for problem in problems)
    assert torch.equal(torch.get_rng_state(), state)


def test_ways_are_tried_before_they_are_timed():
    def ways(**keys):
        problem = recipe(**keys).bind(Share(range(N), N, 3))
        kept = problem.buffers.clone()
        found = problem.ways()
        assert torch.equal(problem.buffers, kept)
        assert list(found) == [*KINDS, "evaluation"]
        return {kind: [name for name, way in ways.items() if way is not None] for kind, ways in found.items()}

    class Assigning(Net):
        def forward(self, x):  # torch.func gives back what it was given
            self.norm.running_mean = self.norm.running_mean + 1
            return super().forward(x)

    class Branching(Net):
        def forward(self, x):
            return super().forward(x if x.sum().item() > 0 else -x)

    class Recurrent(Net):
        def __init__(self):
            super().__init__(False)
            self.body = nn.GRU(F, 5, batch_first=True)

        def forward(self, x):
            return self.head(self.body(x[:, None])[0][:, -1])

    kinds, two = (*KINDS, "evaluation"), [IN_TURN, TOGETHER]
    alone = {kind: [IN_TURN] for kind in kinds}
    assert ways() == dict.fromkeys(kinds, two) | {"gradients": [*two, MAPPED]}
    assert ways(module=Recurrent())["gradients"] == [IN_TURN, MAPPED]
    assert ways(augment=lambda x: x + torch.randn_like(x)) == alone
    assert ways(module=Branching(False)) == alone
    assert ways(module=Assigning(True))["gradients"] == [IN_TURN]
    assert recipe().bind(Share(range(1), 1, 3)).ways() == {}


def test_what_was_fastest_is_told():
    tree = hpcopt.simulate(hpcopt.Local(lr=0.1), recipe(), rounds=1)
    assert json.loads(tree.attrs["chosen"]).keys() == {*KINDS, "evaluation"}
    tree = hpcopt.simulate(hpcopt.Local(lr=0.1), recipe(), rounds=1, deterministic=True)
    assert json.loads(tree.attrs["chosen"]) == {}
    ways = {"not here": None, "here": lambda: None}
    assert LocalPorts(1, torch.zeros(3), timed=True).fastest("kind", ways) == "here"


def test_evaluations_come_out_the_same_in_pieces_of_any_size(monkeypatch):
    def bound(rows):
        torch.manual_seed(0)
        x, y = torch.randn(sum(rows), F), torch.arange(sum(rows)) % C
        ends = [*accumulate(rows, initial=0)]
        keys = {"workers": N, "rows": [range(*of) for of in pairwise(ends)]}
        share = Share(range(2, 5), N, 3, torch.float64)
        problem = hpcopt.Network(
            Net(True), nn.functional.cross_entropy, (x, y), (x[:300], y[:300]), **keys
        ).bind(share)
        problem._module.module.register_forward_pre_hook(lambda module, given: passed.append(len(given[0])))
        return problem

    monkeypatch.setattr(groups, "ROWS", 2048)
    passed = []
    problem, found = bound([1000] * N), []
    X, sizes = torch.randn(3, problem.dim, dtype=torch.float64), problem.ways()["evaluation_piece"]
    assert list(sizes) == ["512", "128", "64"]
    for together in (IN_TURN, TOGETHER):
        problem.take("evaluation", together)
        for size, way in sizes.items():
            for call in (way, lambda: found.append(problem.evaluate(X).values)):
                passed.clear()
                call()
                assert max(passed) == int(size)
                problem.take("evaluation_piece", size)
    assert len(passed) == 16 + 1  # all workers at once, training rows and test rows
    for other in found[1:]:
        for name, values in found[0].items():
            torch.testing.assert_close(values, other[name], rtol=1e-12, atol=0)

    few_here = bound([1000, *[50] * (N - 1)]).ways()["evaluation_piece"]
    passed.clear()
    assert [way() for way in few_here.values()] == [None] * 3
    assert passed == []
    assert "evaluation_piece" not in bound([64] * N).ways()  # there is nothing to choose
    monkeypatch.setattr(network_evaluation, "LONG", 0.0)  # of 512 rows, which are then not tried
    assert [size for size, way in bound([1000] * N).ways()["evaluation_piece"].items() if way] == ["64"]


class Twice(Net):
    """A layer that is used at two places, and weights that are tied between two layers."""

    def __init__(self):
        super().__init__(False)
        same = nn.Linear(5, 5)
        self.norm = nn.Sequential(same, nn.Tanh(), same, nn.Linear(5, 5))
        self.norm[3].weight = same.weight


class Padded(Net):
    """torch.vmap gives the padding's row of all workers but the first a gradient."""

    def __init__(self):
        super().__init__(False)
        self.body = nn.Embedding(9, 5, padding_idx=8)

    def forward(self, x):
        return super().forward((x > 0).sum(1)) + self.body.weight.new_zeros(())


class Referring(Net):
    """Reaches a parameter not by its name, which nobody can replace."""

    def __init__(self):
        super().__init__(False)
        self.kept = [self.head.weight]

    def forward(self, x):
        return nn.functional.linear(torch.tanh(self.body(x)), self.kept[0], self.head.bias)


class Overlapping(nn.Module):
    """The gradient of one parameter is a piece of another's."""

    def __init__(self):
        super().__init__()
        self.r, self.p, self.q = (nn.Parameter(torch.randn(n)) for n in (F, 2, F - 2))
        self.head = nn.Linear(F, C)

    def forward(self, x):
        return self.head(x * (self.r + torch.cat([self.p, self.q])))


@pytest.mark.parametrize("way", [TOGETHER, MAPPED])
def test_a_layer_at_two_places_is_one(way):
    torch.manual_seed(0)
    alone, stacked = both(way=way, module=Twice())
    for problem in (alone, stacked):
        X = problem.initial() + torch.linspace(-1, 1, N * problem.dim, dtype=torch.float64).view(N, -1)
        problem.found = [
            *(problem.hvps(X, X.flip(1), Draw(0)), problem.gradients(X, Draw(0)), problem.losses(X, Draw(0))),
            *(problem.evaluate(X).values["test_loss"], problem.gradient(2, X[2], Draw(1))[0]),
        ]
    assert stacked._together  # it was not refused
    for a, b in zip(alone.found, stacked.found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_what_vmap_makes_wrong_is_not_taken(monkeypatch):
    def ways(module, **keys):
        problem = recipe(module=module, **keys).bind(
            Share(range(N), N, 3)
        )  # float32: the coarsest comparison
        found = problem.ways()
        for kind, some in found.items():
            problem.take(kind, [way for way, call in some.items() if call][-1])
        return problem, {kind: [way for way, call in some.items() if call] for kind, some in found.items()}

    problem, found = ways(Padded())
    assert found["gradients"] == [IN_TURN, MAPPED]
    X = problem.initial() + torch.linspace(-1, 1, N * problem.dim).view(N, -1)
    alone = recipe(module=Padded()).bind(Share(range(N), N, 3))
    for of in (lambda p: p.gradients(X, Draw(1)), lambda p: p.hvps(X, X, Draw(1))):
        torch.testing.assert_close(of(problem), of(alone), rtol=1e-4, atol=1e-5)
    assert ways(Referring())[1] == {kind: [IN_TURN] for kind in found}

    monkeypatch.setattr(groups, "ROWS", 2048)
    monkeypatch.setattr(network_evaluation.NetworkEvaluation, "_piece", 512)

    class Looking(Net):
        def forward(self, x):
            if torch._C._functorch.is_batchedtensor(x):
                raise TypeError("as NumPy's functions do")
            return super().forward(x)

    assert ways(Looking(False), rows=None)[1]["evaluation"] == [IN_TURN]


@pytest.mark.parametrize("way", [TOGETHER, MAPPED])
def test_gradients_can_be_changed_one_by_one(way):
    torch.manual_seed(0)
    alone, stacked = both(way=way, module=Overlapping())
    X = alone.initial().repeat(N, 1)
    for group in stacked.groups([0] * N):
        found = stacked.stacked_gradient(group, group.of(X), Draw(0))
        for g_p in found:
            g_p.mul_(2)
        for k, i in enumerate(group.workers):
            want = alone.gradient(i, X[i], Draw(0))
            for g_p, want_p in zip(found, want, strict=True):
                torch.testing.assert_close(g_p[k], 2 * want_p, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("augment", [None, torch.abs])
def test_an_in_place_first_layer_leaves_the_rows(augment):
    def net(inplace):
        torch.manual_seed(0)
        return nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(F, C))

    keys = {"batch_size": "full", "augment": augment, "rows": None}
    for way in (IN_TURN, TOGETHER):
        found = []
        for inplace in (False, True):
            problem = recipe(module=net(inplace), **keys).bind(Share(range(N), N, 3))
            if way == TOGETHER:
                together(problem)
            before = [worker.train.features.clone() for worker in problem._data]
            X = problem.initial().repeat(N, 1)
            found.append((problem.gradients(X, Draw(0)), *problem.evaluate(X).values.values()))
            after = [worker.train.features for worker in problem._data]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
