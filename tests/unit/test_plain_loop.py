"""hpcopt against a plain torch loop that somebody wrote in twenty lines: the same trajectory."""

import numpy as np
import torch

import hpcopt
from hpcopt.math.streams import stream


def plain_torch(model, x, y, rows, rounds, lr, momentum, batch, seed):
    """Mean of the workers' mini-batch gradients, torch.optim.SGD; nothing of hpcopt but its random stream."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    losses = []
    for round in range(rounds + 1):
        with torch.no_grad():
            losses.append(
                sum(torch.nn.functional.cross_entropy(model(x[r]), y[r]).item() for r in rows) / len(rows)
            )
        optimizer.zero_grad()
        for worker, mine in enumerate(rows):
            epoch, position = divmod(round, len(mine) // batch)
            shuffled = mine[stream(seed, "batches", worker, epoch).permutation(len(mine))]
            take = shuffled[position * batch : (position + 1) * batch]
            (torch.nn.functional.cross_entropy(model(x[take]), y[take]) / len(rows)).backward()
        optimizer.step()
    return losses


def test_the_loss_curve_is_that_of_a_plain_loop(tmp_path):
    torch.manual_seed(3)
    x, y = torch.randn(90, 5, dtype=torch.float64), torch.randint(0, 3, (90,))
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    start = [p.detach().clone() for p in model.parameters()]
    problem = hpcopt.Network(model, torch.nn.functional.cross_entropy, (x, y), None, workers=3, batch_size=7)
    method = hpcopt.AllreduceSGD(lr=0.2, momentum=0.9)
    file = hpcopt.run(method, problem, out=tmp_path / "run", rounds=25, evaluate_every=1, dtype="float64")

    from hpcopt.problems.data import partition

    cut = partition(
        y.numpy(), None, 3, kind="iid", alpha=0.5, classes_per_worker=2, samples_per_worker=None, seed=0
    )
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)
    expected = plain_torch(model, x, y, cut.train, 25, 0.2, 0.9, 7, seed=0)
    np.testing.assert_allclose(hpcopt.load(file)["metrics/loss"], expected, rtol=1e-10)

    hpcopt.export(tmp_path / "run", tmp_path / "weights.npz")
    weights = np.load(tmp_path / "weights.npz")
    assert set(weights) == {name for name, _ in model.named_parameters()}
    assert weights["0.weight"].shape == (8, 5)
