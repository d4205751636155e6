"""What every method computes, as numbers: a change of the code that changes no result leaves them alone."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import hpcopt

CASES = {
    "allreduce_sgd": (hpcopt.AllreduceSGD(lr=0.05), "linear", [14.9356731413, 14.2674257246, 13.8014975313]),
    "momentum": (
        hpcopt.AllreduceSGD(lr=0.2, momentum=0.9, weight_decay=0.1),
        "quadratic",
        [0.957443534936, 0.33328991711, 0.652009150557],
    ),
    "nesterov": (
        hpcopt.AllreduceSGD(lr=0.05, momentum=0.9, nesterov=True),
        "linear",
        [14.0589828452, 12.9517721091, 13.0119475658],
    ),
    "adam": (
        hpcopt.AllreduceSGD(lr=0.1, optimizer="adam", schedule="cosine", lr_horizon=8),
        "network",
        [0.931004037068, 0.892151845401, 0.879272707626],
    ),
    "delayed_sgd": (
        hpcopt.DelayedSGD(lr=0.05, delay=[2, 0, 3], compensation=0.5),
        "network",
        [1.04659322423, 1.0208049149, 1.0011967116],
    ),
    "delayed_sgd schedule": (
        hpcopt.DelayedSGD(mode="schedule", delay=[1, 2, 4], lr_rule="adaptive", lr_factor=0.1),
        "linear",
        [15.042592876, 14.6241249543, 14.2243277239],
    ),
    "regtopk": (hpcopt.RegTopK(lr=0.05, k=2), "linear", [15.5833230849, 14.1702311834, 13.9194428054]),
    "regtopk on the toy": (
        hpcopt.RegTopK(lr=0.5, k=1),
        "toy",
        [0.247741768453, 0.203543167881, 0.172076416478],
    ),
    "regtopk accumulated": (
        hpcopt.RegTopK(lr=0.1, density=0.2, mu=1.0, denominator="accumulated"),
        "network",
        [1.03693985554, 0.994601962936, 0.964505338764],
    ),
    "regtopk global": (
        hpcopt.RegTopK(lr=0.05, k=2, select="global", momentum=0.5),
        "linear",
        [15.4075893352, 13.6304021285, 13.406219131],
    ),
    "topk": (
        hpcopt.TopK(lr=0.1, density=0.1, density_warmup_rounds=4, density_start=1.0),
        "network",
        [1.03652585035, 0.995958638494, 0.969253806623],
    ),
    "topk global": (
        hpcopt.TopK(lr=0.05, k=2, select="global"),
        "linear",
        [15.4403929217, 14.1549716555, 14.0684652887],
    ),
    "topk per layer": (
        hpcopt.TopK(lr=0.1, density=0.2, per_layer=True),
        "network",
        [1.03697823349, 0.996306411214, 0.963393688011],
    ),
    "randomk": (
        hpcopt.RandomK(lr=0.1, density=0.2, momentum=0.5),
        "network",
        [1.04852444814, 1.03437883615, 0.987960432496],
    ),
    "powersgd": (
        hpcopt.PowerSGD(lr=0.1, rank=1, momentum=0.5),
        "network",
        [1.03241247522, 0.969953276624, 0.923420873772],
    ),
    "powersgd whole": (hpcopt.PowerSGD(lr=0.05), "linear", [14.9356731413, 14.2674257246, 13.8014975313]),
    "deprl": (
        hpcopt.DePRL(lr=0.1, head_steps=2, body_steps=1, momentum=0.5),
        "network",
        [0.958599265396, 0.879256331038, 0.830204968921],
    ),
    "deprl body first": (
        hpcopt.DePRL(lr=0.1, lr_head=0.2, order="body_first", body_epochs=1, clip=0.5),
        "network",
        [0.902578065983, 0.813963578067, 0.758476626426],
    ),
    "deprl together": (
        hpcopt.DePRL(lr=0.1, body_steps=3, order="together", overlap=True),
        "network",
        [0.919116121437, 0.849314211822, 0.811106076739],
    ),
    "dpsgd": (hpcopt.DPSGD(lr=0.02, local_steps=2), "linear", [15.1904251895, 14.5662532799, 14.1063961861]),
    "dpsgd one peer": (
        hpcopt.DPSGD(lr=0.1, topology="one_peer_exponential", overlap=True),
        "network",
        [0.868426250982, 0.801764780081, 0.776317788913],
    ),
    "dpsgd star": (
        hpcopt.DPSGD(lr=0.1, local_epochs=1, topology="star", mixing="laplacian"),
        "network",
        [0.917499334608, 0.857728265677, 0.827792724674],
    ),
    "gradient_tracking": (
        hpcopt.GradientTracking(lr=0.05, topology="star"),
        "linear",
        [14.380325646, 13.7641701432, 13.376606246],
    ),
    "local": (
        hpcopt.Local(lr=0.02, local_steps=2, momentum=0.5),
        "linear",
        [7.06314129017, 3.20425982078, 2.03506917495],
    ),
    "fedavg": (
        hpcopt.FedAvg(lr=0.1, local_steps=2, momentum=0.5, weight_decay=0.01),
        "network",
        [0.974221512648, 0.924600096403, 0.890633033873],
    ),
    "fedavg epochs": (
        hpcopt.FedAvg(lr=0.02, local_epochs=1, clip=5.0),
        "linear",
        [15.7885011847, 15.5559331836, 15.3596961456],
    ),
    "on margins": (hpcopt.AllreduceSGD(lr=0.5), "logistic", [18.9234151374, 17.709974237, 16.8614275483]),
    "fadl": (hpcopt.FADL(inner_iterations=3), "logistic", [13.6606277421, 9.93207462566, 9.32378792391]),
    "fadl nonlinear": (
        hpcopt.FADL(approximation="nonlinear", inner_iterations=3),
        "hinge",
        [21.9096428214, 13.6313902055, 12.7932080024],
    ),
    "fadl hybrid": (
        hpcopt.FADL(approximation="hybrid", combination="rows", inner_iterations=3),
        "hinge",
        [15.2382797441, 12.8640997417, 12.1667782448],
    ),
    "fadl svrg": (
        hpcopt.FADL(approximation="linear", inner_solver="svrg", inner_iterations=2, warm_start=1),
        "logistic",
        [15.111824599, 13.694046448, 12.0362010653],
    ),
    "fadl adaptive": (
        hpcopt.FADL(approximation="adaptive", inner_iterations=2, keep=2),
        "hinge",
        [13.7268964243, 10.985444864, 5.37809884795],
    ),
    "common_directions": (
        hpcopt.CommonDirections(keep=2, diagonal_every=2, margins_every=3),
        "logistic",
        [10.959469378, 9.39650588747, 7.03019702358],
    ),
    "tron": (hpcopt.TRON(cg_iterations=2), "logistic", [11.3848206177, 9.67575332302, 9.19892434925]),
    "tron preconditioned": (
        hpcopt.TRON(preconditioner="diagonal", cg_iterations=2),
        "hinge",
        [14.4319875194, 12.7799708801, 12.0002212919],
    ),
    "lbfgs": (hpcopt.LBFGS(memory=3), "logistic", [11.8592314446, 9.92676112678, 8.89321041226]),
    "lbfgs on a network": (
        hpcopt.LBFGS(memory=3),
        "network",
        [0.837805986579, 0.701394424255, 0.580632174756],
    ),
    "cocoa": (hpcopt.CoCoA(local_passes=2), "logistic", [25.7893896606, 18.6299483962, 17.6659626583]),
    "cocoa with the hinge": (
        hpcopt.CoCoA(local_passes=1),
        "hinge",
        [23.9755739643, 17.3459131284, 20.011206417],
    ),
    "dho2": (
        hpcopt.DHO2(lr=0.05, largest=3, smallest=1, warmup=2, refresh_every=2, curvature_batch=8),
        "network",
        [1.0397328201, 0.965487220808, 0.904562109453],
    ),
    "dho2 admm": (
        hpcopt.DHO2(
            variant="admm",
            base="adam",
            lr=0.05,
            largest=2,
            warmup=1,
            refresh_every=3,
            outer_every=2,
            outer_damping=0.1,
        ),
        "linear",
        [15.4925029718, 14.835556278, 14.5842235203],
    ),
    "averaging": (hpcopt.Averaging(), "squares", [42.866324843]),
}


def network():
    """Three classes, one hidden layer, start and rows from a NumPy generator; every worker has 20 rows."""
    draw = np.random.default_rng(5)
    x = draw.standard_normal((60, 4))
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] * x[:, 2] > 0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.from_numpy(0.5 * draw.standard_normal(p.shape)))
    return hpcopt.Network(
        model, torch.nn.functional.cross_entropy, (x, y), workers=3, batch_size=5, private=["2.*"]
    )


def margins(loss):
    """Thirty rows of which most entries are 0, for workers with different numbers of them."""
    draw = np.random.default_rng(6)
    x = draw.standard_normal((30, 12)) * (draw.random((30, 12)) < 0.4)
    y = np.sign(x[:, 0] - x[:, 1] + 0.5 * draw.standard_normal(30))
    return loss((csr_matrix(x), y), workers=3, rows=[range(12), range(12, 17), range(17, 30)])


PROBLEMS = {
    "logistic": lambda: margins(hpcopt.Logistic),
    "hinge": lambda: margins(hpcopt.SquaredHinge),
    "squares": lambda: margins(hpcopt.LeastSquares),
    "linear": lambda: hpcopt.LinearRegression(3, dim=6, rows_per_worker=10, batch_size=5),
    "quadratic": lambda: hpcopt.Quadratic(3, "power", dim=6),
    "toy": lambda: hpcopt.ToyLogistic(2, spread=10.0),
    "network": network,
}


@pytest.mark.parametrize("name", CASES)
def test_losses(tmp_path, name):
    method, problem, losses = CASES[name]
    keys = {"rounds": 6, "evaluate_every": 2, "dtype": "float64", "device": "cpu"}
    file = hpcopt.run(method, PROBLEMS[problem](), out=tmp_path / "run", **keys)
    np.testing.assert_allclose(hpcopt.load(file)["metrics/loss"][1:], losses, rtol=1e-9)
