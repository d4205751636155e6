"""Limited-memory BFGS: the inverse Hessian that the last steps tell.

Nocedal, "Updating quasi-Newton matrices with limited storage", Math. Comp. 35, 1980.

symbol    name     shape     meaning
s_k       S        (m, d)    steps, pair k in row k mod m
y_k       Y        (m, d)    by how much the gradient changed on them
          count    (1,)      pairs so far, int64
"""

from __future__ import annotations

import torch
from torch import Tensor

CURVED = 1e-12
"""s·y over ‖s‖‖y‖, below which a pair tells nothing but rounding, or that f is not convex"""


def newest_first(S: Tensor, count: Tensor) -> list[int]:
    """The rows of the pairs that are kept."""
    total, m = int(count), len(S)
    return [k % m for k in range(total - 1, max(0, total - m) - 1, -1)]


def direction(S: Tensor, Y: Tensor, count: Tensor, g: Tensor) -> Tensor:
    """−H g, (d,), H the inverse Hessian that the pairs tell; −g where there are none."""
    order = newest_first(S, count)
    q = -g
    alphas = []
    for k in order:
        alpha = torch.dot(S[k], q) / torch.dot(S[k], Y[k])
        q.sub_(alpha * Y[k])
        alphas.append(alpha)
    if order:
        k = order[0]
        q.mul_(torch.dot(S[k], Y[k]) / torch.dot(Y[k], Y[k]))
    for k, alpha in zip(reversed(order), reversed(alphas), strict=True):
        beta = torch.dot(Y[k], q) / torch.dot(S[k], Y[k])
        q.add_((alpha - beta) * S[k])
    return q


def remember(S: Tensor, Y: Tensor, count: Tensor, s: Tensor, y: Tensor) -> None:
    """Keeps a pair in place of the oldest, unless f does not curve upwards along it."""
    if float(torch.dot(s, y)) > CURVED * float(s.norm() * y.norm()):
        k = int(count) % len(S)
        S[k], Y[k] = s, y
        count.add_(1)
