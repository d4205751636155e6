"""Graphs and mixing matrices: against their formulas, dense linear algebra, and wrong input."""

import math
import sys

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from hpcopt.errors import UserError
from hpcopt.math import mixing_rate as module
from hpcopt.math.graphs import graph, torus_shape
from hpcopt.math.mixing import Mixing, check, mixing
from hpcopt.math.mixing_rate import DENSE

STATIC = ("ring", "torus", "star", "complete", "erdos_renyi", "exponential")


@pytest.fixture
def file(tmp_path):
    def write(text, name="edges.txt"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def dense_report(W):
    """|λ₂| by the definition: all eigenvalues, without one that is 1."""
    values = np.linalg.eigvals(W.toarray())
    return float(np.sort(np.abs(np.delete(values, np.abs(values - 1).argmin())))[-1])


# --- graphs


@pytest.mark.parametrize("topology", STATIC)
def test_a_single_worker_is_a_graph_without_edges(topology):
    alone = graph(topology, 1)
    assert (list(alone.nodes), list(alone.edges)) == ([0], [])
    report = check(mixing(topology, "metropolis", 1))
    assert (report.lambda2, report.gap, report.mixing_time, report.neighbours) == (0, 1, 0, (0, 0))


@pytest.mark.parametrize(
    ("topology", "N", "twin"),
    [
        ("ring", 2, networkx.path_graph(2)),
        ("ring", 3, networkx.cycle_graph(3)),
        ("ring", 9, networkx.cycle_graph(9)),
        ("star", 7, networkx.star_graph(6)),
        ("complete", 6, networkx.complete_graph(6)),
        ("torus", 4, networkx.cycle_graph(4)),
        ("torus", 12, networkx.grid_2d_graph(3, 4, periodic=True)),
        ("torus", 10, networkx.circular_ladder_graph(5)),
        ("exponential", 16, networkx.circulant_graph(16, [1, 2, 4, 8])),
        ("exponential", 11, networkx.circulant_graph(11, [1, 2, 4, 8])),
    ],
)
def test_shapes(topology, N, twin):
    made = graph(topology, N)
    assert list(made.nodes) == list(range(N))
    assert networkx.number_of_selfloops(made) == 0
    assert networkx.is_isomorphic(made, twin)


@pytest.mark.parametrize(
    ("N", "shape"), [(1, (1, 1)), (4, (2, 2)), (22, (2, 11)), (36, (6, 6)), (128, (8, 16))]
)
def test_the_torus_is_the_most_square_one(N, shape):
    assert torus_shape(N) == shape


@pytest.mark.parametrize(("N", "near"), [(2, 4), (3, 4), (5, 4), (7, 6), (127, 126)])
def test_no_torus_of_a_prime(N, near):
    with pytest.raises(UserError, match=rf'"torus" with N = {N}:.*"ring", or N = {near}$'):
        graph("torus", N)


def test_random_graphs_depend_on_the_seed_alone():
    edges = [sorted(graph("erdos_renyi", 40, seed=seed).edges) for seed in (3, 3, 4)]
    assert edges[0] == edges[1] != edges[2]
    p = np.mean(
        [graph("erdos_renyi", 60, probability=0.3, seed=s).number_of_edges() / 1770 for s in range(9)]
    )
    assert p == pytest.approx(0.3, abs=0.02)
    assert networkx.utils.graphs_equal(graph("erdos_renyi", 9, probability=1.0), graph("complete", 9))


def test_random_graphs_in_pieces_are_refused():
    with pytest.raises(UserError, match=r"probability = 0.01, N = 64, seed = 5: .*ln N / N = 0.065; raise"):
        graph("erdos_renyi", 64, probability=0.01, seed=5)


@pytest.mark.parametrize("p", [0.0, -0.1, 1.1, math.nan])
def test_probabilities_out_of_range(p):
    with pytest.raises(UserError, match="above 0 and at most 1"):
        graph("erdos_renyi", 4, probability=p)


def test_what_is_no_topology():
    with pytest.raises(
        UserError, match=r'topology = "rnig" is neither a file nor known: .*did you mean "ring"'
    ):
        graph("rnig", 4)
    with pytest.raises(UserError, match="another graph in every round"):
        graph("one_peer_exponential", 4)
    with pytest.raises(UserError, match="N = 0"):
        mixing("ring", "metropolis", 0)


@pytest.mark.parametrize("package", ["networkx", "scipy.sparse"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'needs {package.split(".")[0]}: pip install "hpcopt\[run\]"'):
        mixing("ring", "metropolis", 4)


# --- files


def test_edge_lists(file):
    path = file("# a path\n0 1\n\n1\t2 0.5  # with a weight\n3 2\n")
    for made in (graph(path, 4), graph("file", 4, path=path)):
        assert networkx.utils.edges_equal(made.edges, [(0, 1), (1, 2), (2, 3)])
        assert made.edges[1, 2] == {"weight": 0.5}
    with pytest.raises(UserError, match=r"has weights, which mixing = \"metropolis\" does not use"):
        mixing(path, "metropolis", 4)
    path = file("0 1\n1 2\n3 2\n")
    assert check(mixing(path, "metropolis", 4)).description.startswith(f"{path} of 4, Metropolis weights: ")
    with pytest.raises(UserError, match=r'topology = "x+" is neither a file nor known'):
        mixing("x" * 300, "metropolis", 4)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 4", r"node 4 is out of range: allowed are the integers 0…3, nodes are counted from 0"),
        ("-1 0", r"node -1 is out of range"),
        ("0 1.0", r'node "1.0" is not an integer: allowed are the integers 0…3'),
        ("0 b", r'node "b" is not an integer'),
        ("2 2", r'"2 2" joins a node to itself'),
        ("0 1", r'"0 1" repeats line 1; each edge is allowed once'),
        ("1 0", r'"1 0" repeats line 1'),
        ("3", r'"3": allowed is i j or i j weight'),
        ("0 3 1 1", r'"0 3 1 1": allowed is'),
        ("0 3 heavy", r'weight "heavy" is not allowed: it must be a finite number'),
        ("0 3 nan", r'weight "nan" is not allowed'),
    ],
)
def test_wrong_lines_of_an_edge_list(file, line, complaint):
    path = file(f"0 1\n# fine\n{line}\n1 2\n2 3\n")
    with pytest.raises(UserError, match=rf"^{path}, line 3: {complaint}"):
        graph(path, 4)


def test_wrong_lines_come_together_but_not_in_thousands(file):
    with pytest.raises(UserError) as raised:
        graph(file("0 9\n" * 8), 4)
    lines = str(raised.value).splitlines()
    assert len(lines) == 6
    assert "line 5: node 9" in lines[4]
    assert lines[5] == "and 3 more"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="is neither a file nor known"):
        graph(str(tmp_path), 4)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not a text file"):
        graph(str(tmp_path / "binary"), 4)
    with pytest.raises(UserError, match="No such file"):
        graph("file", 4, path=tmp_path / "absent")


def test_weight_files_fill_in_the_other_direction_and_the_diagonal(file):
    path = file("0 1 0.5\n1 2 0.25\n2 1 0.5\n2 2 0.5\n")
    expected = [[0.5, 0.5, 0], [0.5, 0.25, 0.25], [0, 0.5, 0.5]]
    for topology in (path, "ring", "complete"):
        W = mixing(topology, path, 3).at(0)
        assert W.toarray().tolist() == expected
    report = check(mixing(path, path, 3))
    assert (report.symmetric, report.doubly_stochastic, report.consensus) == (False, False, "weighted")
    assert "consensus is weighted; column sums 0.75…1.25" in report.description


def test_thirds_in_a_file_leave_no_negative_diagonal(file):
    third = 1 / 3
    path = file(f"0 1 {third}\n0 2 {third}\n0 3 {third}\n1 2 {third}\n1 3 {third}\n2 3 {third}")
    assert mixing(path, path, 4).at(0).nnz == 12  # K4 without self-weights
    assert check(mixing(path, path, 4)).lambda2 == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0 1 0.5\n0 1 0.5", r'line 2: "0 1" repeats line 1'),
        ("0 1", r'line 1: "0 1": allowed is i j weight'),
        (
            "0 2 0.5",
            r'line 1: "0 2" has a weight but is no edge of topology = "ring".*allows all in this file',
        ),
        ("0 1 -0.5\n1 2 .5\n2 3 .5", r"W\[0, 1\] = -0.5: allowed are finite weights of at least 0$"),
        (
            "0 1 .5\n1 2 0.7\n2 3 0.3",
            r"W\[1, 1\] = -0.2: allowed are .* at least 0 \(the others of row 1 sum to 1.2\)",
        ),
        ("0 1 .5\n1 2 .5\n2 3 .5\n3 3 0.4", r"W: row 3 sums to 0.9, allowed is 1 \(to 1e-09\)"),
        ("0 1 0.5\n2 3 0.5", r"not connected but in 2 groups: .* between workers 0 and 2"),
        ("0 1 .5\n1 2 .5\n2 3 .5\n3 2 0", r"not connected but in 2 groups: .* between workers 0 and 3"),
        ("", r"not connected but in 4 groups"),
    ],
)
def test_weight_files_that_cannot_be_used(file, text, complaint):
    with pytest.raises(UserError, match=complaint):
        check(mixing("ring", file(text), 4))


def test_what_are_no_weights(file):
    with pytest.raises(UserError, match=r'mixing = "metro" is neither a file nor known: .*"metropolis"'):
        mixing("ring", "metro", 4)
    with pytest.raises(UserError, match=r"has weights 1/2; allowed are metropolis, uniform, laplacian"):
        mixing("one_peer_exponential", file("0 1 1"), 4)


# --- weights


@st.composite
def connected_graphs(draw):
    """An edge list's text, its N: a random tree and more edges."""
    N = draw(st.integers(2, 12))
    tree = {(draw(st.integers(0, j - 1)), j) for j in range(1, N)}
    pairs = [(i, j) for j in range(N) for i in range(j)]
    return N, sorted(tree | set(draw(st.lists(st.sampled_from(pairs)))))


@settings(max_examples=40)
@given(connected_graphs(), st.sampled_from(["metropolis", "uniform", "laplacian"]))
def test_weights_on_any_connected_graph(tmp_path_factory, made, kind):
    N, edges = made
    path = tmp_path_factory.mktemp("graph") / "edges.txt"
    path.write_text("\n".join(f"{i} {j}" for i, j in edges))
    sequence = mixing(str(path), kind, N)
    W, G = sequence.at(7), graph(str(path), N)
    A, deg = networkx.to_numpy_array(G, range(N)), np.array([G.degree[i] for i in range(N)])
    closed = A + np.eye(N)
    expected = {
        "metropolis": A / (1 + np.maximum(deg[:, None], deg)),
        "uniform": A / closed.sum(axis=1, keepdims=True),
        "laplacian": A / (1 + deg.max()),
    }[kind]
    np.testing.assert_allclose(W.toarray(), expected + np.diag(1 - expected.sum(axis=1)), atol=1e-15)
    assert ((W.toarray() > 0) == (closed > 0)).all()
    report = check(sequence)
    regular = len(set(deg)) == 1
    assert report.symmetric == report.doubly_stochastic == (kind != "uniform" or regular)
    assert report.neighbours == (deg.min(), deg.max())
    assert report.lambda2 == pytest.approx(dense_report(W), abs=1e-9)
    if kind == "uniform":  # the consensus is the mean weighted by 1 + deg_i
        np.testing.assert_allclose((1 + deg) @ W.toarray(), 1 + deg)


@settings(max_examples=40, deadline=None)
@given(connected_graphs(), st.data())
def test_means_by_weights_on_any_connected_graph(tmp_path_factory, made, data):
    """Against the formula; ω is kept, and equal ones make it metropolis, to the bit."""
    N, edges = made
    path = tmp_path_factory.mktemp("graph") / "edges.txt"
    path.write_text("\n".join(f"{i} {j}" for i, j in edges))
    c = np.array(data.draw(st.lists(st.integers(1, 900), min_size=N, max_size=N)), dtype=float)
    W = mixing(str(path), "weighted", N, counts=c).at(0).toarray()
    A = networkx.to_numpy_array(graph(str(path), N), range(N))
    s = (A + np.eye(N)) @ c
    expected = A * c / np.maximum(s[:, None], s)
    np.testing.assert_allclose(W, expected + np.diag(1 - expected.sum(axis=1)), atol=1e-15)
    np.testing.assert_allclose(c @ W, c)
    assert (W >= 0).all()
    report = check(mixing(str(path), "weighted", N, counts=c))
    assert report.lambda2 == pytest.approx(dense_report(csr_array(W)), abs=1e-9)
    plain, equal = (mixing(str(path), kind, N).at(0) for kind in ("metropolis", "weighted"))
    assert np.array_equal(plain.toarray(), equal.toarray())


def test_means_by_weights_are_exact_at_once_where_all_are_neighbours():
    c = np.array([1.0, 5.0, 2.0])
    np.testing.assert_allclose(
        mixing("complete", "weighted", 3, counts=c).at(0).toarray(), np.tile(c / 8, (3, 1)), atol=1e-15
    )
    with pytest.raises(UserError, match="has weights 1/2, and here workers have different ones"):
        mixing("one_peer_exponential", "weighted", 3, counts=c)


def test_sparse_spectra_of_means_by_weights(monkeypatch):
    c = np.random.default_rng(1).integers(1, 500, 100).astype(float)
    sequence = mixing("erdos_renyi", "weighted", 100, counts=c)
    exact = check(sequence).lambda2
    assert exact == pytest.approx(dense_report(sequence.at(0)), abs=1e-9)
    monkeypatch.setattr(module, "DENSE", 10)
    assert check(sequence).lambda2 == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(("topology", "row"), [("ring", 3), ("torus", 5), ("star", 3), ("exponential", 26)])
def test_matrices_are_sparse(topology, row):
    W = mixing(topology, "metropolis", 4096).at(0)
    assert isinstance(W, csr_array)
    assert W.dtype == np.float64
    assert W.has_sorted_indices
    assert W.nnz <= row * 4096


@pytest.mark.parametrize("kind", ["metropolis", "uniform", "laplacian"])
@pytest.mark.parametrize("N", [1, 2, 3, 6, 8, 64])
def test_one_peer(N, kind):
    sequence = mixing("one_peer_exponential", kind, N)
    assert sequence.period == max(1, math.ceil(math.log2(N)))
    P = np.eye(N)
    for t in range(sequence.period):
        W = sequence.at(t + 5 * sequence.period).toarray()
        for i in range(N if N > 1 else 0):
            assert W[i, i] == W[i, (i - 2**t) % N] == 0.5
        P = W @ P
    report = check(sequence)
    assert report.doubly_stochastic
    assert report.symmetric == (N < 3)
    assert report.neighbours == (min(1, N - 1),) * 2
    left = np.linalg.norm(P - 1 / N, 2)
    if N & (N - 1):
        assert report.lambda2 == pytest.approx(left ** (1 / sequence.period))
    else:
        np.testing.assert_allclose(P, 1 / N, rtol=0, atol=1e-15)
        assert (report.lambda2, report.mixing_time) == (0, sequence.period if N > 1 else 0)


# --- the spectrum


@pytest.mark.parametrize(
    ("topology", "kind", "lambda2"),
    [
        ("ring", "metropolis", 1 / 3 + 2 / 3 * math.cos(math.tau / 128)),  # 0.9992
        ("exponential", "metropolis", 10 / 14),  # 13 neighbours: of i ± 2^j, ± 64 are the same
        ("complete", "uniform", 0.0),
        ("star", "uniform", 0.5),
        ("torus", "metropolis", 3 / 5 + 2 / 5 * math.cos(math.tau / 16)),
    ],
)
def test_known_spectra_of_128(topology, kind, lambda2):
    assert check(mixing(topology, kind, 128)).lambda2 == pytest.approx(lambda2, abs=1e-12)


def test_measured_random_graphs_of_128():
    """Single draws spread by 0.1 around what was measured, so the median of several is compared."""
    reports = {
        kind: [check(mixing("erdos_renyi", kind, 128, seed=seed)) for seed in range(20)]
        for kind in ("uniform", "metropolis")
    }
    medians = {kind: np.median([report.lambda2 for report in found]) for kind, found in reports.items()}
    assert medians == pytest.approx({"uniform": 0.32, "metropolis": 0.46}, abs=0.06)
    sums = np.median([report.column_sums for report in reports["uniform"]], axis=0)
    assert sums == pytest.approx([0.66, 1.48], abs=0.1)


def test_a_directed_ring(file):
    path = file("".join(f"{i} {(i + 1) % 9} 0.5\n{(i + 1) % 9} {i} 0\n" for i in range(9)))
    report = check(mixing(path, path, 9))
    assert (report.symmetric, report.doubly_stochastic, report.neighbours) == (False, True, (1, 1))
    assert report.lambda2 == pytest.approx(math.cos(math.pi / 9))


def test_workers_that_swap_never_agree(file):
    path = file("0 1 1")
    report = check(mixing(path, path, 2))
    assert (report.lambda2, report.gap, report.mixing_time) == (1, 0, math.inf)
    assert "no agreement ever" in report.description


@pytest.mark.parametrize(
    ("topology", "kind"),
    [
        ("ring", "metropolis"),
        ("star", "uniform"),
        ("complete", "metropolis"),
        ("erdos_renyi", "uniform"),
        ("one_peer_exponential", "uniform"),
    ],
)
def test_sparse_spectra_are_the_dense_ones(monkeypatch, topology, kind):
    sequence = mixing(topology, kind, 100, seed=1)
    exact = check(sequence).lambda2
    monkeypatch.setattr(module, "DENSE", 10)
    assert check(sequence).lambda2 == pytest.approx(exact, abs=1e-9)
    monkeypatch.setattr(module, "RESTARTS", 1)  # Arnoldi gives up, and the fallbacks answer
    monkeypatch.setattr(module, "KRYLOV", 3)
    assert check(sequence).lambda2 == pytest.approx(exact, abs=1e-9)


def test_sparse_spectra_of_a_directed_graph(monkeypatch, file):
    path = file("".join(f"{i} {(i + 1) % 90} 0.3\n{(i + 1) % 90} {i} 0.1\n" for i in range(90)))
    sequence = mixing(path, path, 90)
    monkeypatch.setattr(module, "DENSE", 10)
    for restarts in (module.RESTARTS, 1):
        monkeypatch.setattr(module, "RESTARTS", restarts)
        assert check(sequence).lambda2 == pytest.approx(dense_report(sequence.at(0)), abs=1e-9)


@pytest.mark.parametrize("N", [DENSE + 1, 1024, 8192])
def test_large_rings(N):
    lambda2 = 1 / 3 + 2 / 3 * math.cos(math.tau / N)
    assert check(mixing("ring", "uniform", N)).gap == pytest.approx(1 - lambda2, rel=1e-4)


def test_large_one_peer():
    assert check(mixing("one_peer_exponential", "uniform", 1024)).lambda2 == 0
    assert 0.5 < check(mixing("one_peer_exponential", "uniform", 1000)).lambda2 < 0.8


@pytest.mark.parametrize(
    ("topology", "kind", "N", "line"),
    [
        (
            "ring",
            "metropolis",
            16,
            "ring of 16, Metropolis weights: |λ₂| 0.949, mixing time 19 rounds, 2 neighbours",
        ),
        (
            "complete",
            "uniform",
            4,
            "complete graph of 4, uniform weights: |λ₂| 0.000, exact after 1 round, 3 neighbours",
        ),
        (
            "torus",
            "laplacian",
            8,
            "torus 2×4, Laplacian weights: |λ₂| 0.500, mixing time 1.4 rounds, 3 neighbours",
        ),
        (
            "one_peer_exponential",
            "uniform",
            8,
            "one-peer exponential graph of 8, weights 1/2: |λ₂| 0.000, exact after 3 rounds, 1 neighbour, "
            "not symmetric",
        ),
        (
            "star",
            "uniform",
            4,
            "star of 4, uniform weights: |λ₂| 0.500, mixing time 1.4 rounds, 1…3 neighbours, not symmetric; "
            "row-stochastic only, consensus is degree-weighted; column sums 0.75…1.75",
        ),
    ],
)
def test_descriptions(topology, kind, N, line):
    assert check(mixing(topology, kind, N)).description == line


def test_faults_of_a_longer_period_name_the_matrix():
    half = csr_array(np.full((2, 2), 0.5))
    with pytest.raises(UserError, match=r"W_1: row 0 sums to 0\.5"):
        check(Mixing("mine", "mine", (half, half / 2)))
    with pytest.raises(UserError, match=r"W_1\[0, 0\] = nan"):
        check(Mixing("mine", "mine", (half, half * math.nan)))
