"""The line search, and the step in a trust region."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpcopt.math.krylov import Step, conjugate_gradients
from hpcopt.math.linesearch import search
from hpcopt.math.trust_region import next_radius

ARMIJO, WOLFE = 1e-4, 0.9
SHAPES = {
    "parabola": lambda t, a, b: (a * (t - b) ** 2, 2 * a * (t - b)),
    "root": lambda t, a, b: (a * math.hypot(1, t - b), a * (t - b) / math.hypot(1, t - b)),
    "exponential": lambda t, a, b: (math.exp(min(a * t, 700)) - b * t, a * math.exp(min(a * t, 700)) - b),
    "hinge": lambda t, a, b: (a * max(0, b - t) ** 2 + t * 1e-3, -2 * a * max(0, b - t) + 1e-3),
}
positive = st.floats(-3, 3).map(lambda e: 10.0**e)


@settings(max_examples=300)
@given(st.sampled_from(sorted(SHAPES)), positive, positive, positive)
def test_both_conditions_hold_where_it_ends(shape, a, b, first):
    def along(t):
        return SHAPES[shape](t, a, b)

    value, slope = along(0.0)
    found = search(along, value, slope, first)
    if slope >= 0:
        assert (found.t, found.value, found.trials) == (0, value, 0)
        return
    # a fall that is more than rounding
    assume(-slope > 1e-4 * {"exponential": a, "hinge": 2 * a * b}.get(shape, 0))
    assert found.t > 0
    assert (found.value, found.slope) == along(found.t)
    assert found.value <= value + ARMIJO * found.t * slope
    assert abs(found.slope) <= -WOLFE * slope
    assert found.trials <= 30


@given(st.randoms(use_true_random=False), st.integers(1, 8))
def test_never_above_the_start_whatever_the_function_says(random, most):
    asked = []

    def along(t):
        asked.append(t)
        number = random.choice([random.uniform(-1, 1), math.inf, math.nan])
        return number, random.choice([random.uniform(-9, 9), math.nan])

    found = search(along, 0.0, -1.0, most=most)
    assert found.value <= 0
    assert found.trials == len(asked) <= most
    assert all(t > 0 for t in asked)


def test_a_fall_that_drowns_in_rounding():
    """Nothing is lower: no step, unless slopes are believed within a slack."""

    def along(t):
        return 1.0 + 2**-52, 1e-20 * (t - 1)

    assert search(along, 1.0, -1e-20).t == 0
    assert search(along, 1.0, -1e-20, slack=2**-52).t == 1


@pytest.mark.parametrize("a", [1e3, 1e60, 1e100])
def test_patience_where_the_minimum_is_far_before_the_first_trial(a):
    """Not where what could be gained is rounding."""

    def along(t):
        return 1 + a * t * (a * t - 1), a * (2 * a * t - 1)

    found = search(along, *along(0.0), patient=True)
    assert found.value <= 1 + ARMIJO * found.t * -a
    assert (search(along, *along(0.0)).t > 0) == (a < 1e30)
    still = search(lambda t: (1.0 + t, 1.0), 1.0, -1e-20, patient=True)
    assert (still.t, still.trials) == (0, 30)
    flat = search(lambda t: (1.0, -1.0), 1.0, -1.0, slack=1e-9, patient=True)  # whatever the slopes say
    assert (flat.t, flat.trials) == (0, 30)
    never = search(lambda t: (math.inf, math.inf), 1.0, -1.0, patient=True)
    assert (never.t, never.trials) == (0, 52)  # until t is a rounding of 1


@pytest.mark.parametrize("start", [(math.inf, -1.0), (1.0, -math.inf), (1.0, math.nan)])
def test_no_step_is_known_where_the_start_is_no_number(start):
    assert math.isnan(search(lambda t: (0.0, 0.0), *start).t)


def test_a_product_that_overflows():
    """At once: no step is known. Later: what was found until then."""
    g = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert conjugate_gradients(lambda v: v * math.inf, g, 5).s.isnan().all()
    answers = iter([2 * g.diag() @ -g + torch.tensor([0.0, 1.0]), g * math.inf])
    assert conjugate_gradients(lambda v: next(answers), g, 5).s.isfinite().all()


def system(seed=0, d=12):
    draw = np.random.default_rng(seed)
    A = draw.standard_normal((d, d))
    return torch.tensor(A @ A.T + np.eye(d)), torch.tensor(draw.standard_normal(d))


@pytest.mark.parametrize("scaled", [False, True])
def test_without_a_radius_it_solves_the_system(scaled):
    H, g = system()
    M = torch.diagonal(H).clone() if scaled else None
    step = conjugate_gradients(lambda v: H @ v, g, 50, tolerance=1e-12, precondition=M)
    torch.testing.assert_close(step.s, -torch.linalg.solve(H, g), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(step.residual, -g - H @ step.s, rtol=0, atol=1e-9)
    assert not step.boundary
    assert step.predicted(g) == pytest.approx(float(-(g @ step.s) - step.s @ H @ step.s / 2))


@pytest.mark.parametrize("scaled", [False, True])
def test_the_radius_bounds_the_step(scaled):
    H, g = system()
    M = torch.diagonal(H).clone() if scaled else None
    free = conjugate_gradients(lambda v: H @ v, g, 50, tolerance=1e-12, precondition=M)
    step = conjugate_gradients(lambda v: H @ v, g, 50, free.length / 2, 1e-12, M)
    length = math.sqrt(float(step.s @ (step.s if M is None else M * step.s)))
    assert step.boundary
    assert length == pytest.approx(free.length / 2)
    torch.testing.assert_close(step.residual, -g - H @ step.s)
    assert 0 < step.predicted(g) < free.predicted(g)


def test_as_many_products_as_allowed():
    H, g = system()
    assert conjugate_gradients(lambda v: H @ v, g, 3).products == 3


@pytest.mark.parametrize(
    ("change", "boundary", "first", "radius"),
    [
        (2.0, False, False, 0.25),  # f rose by far: LIBLINEAR's max(σ1, −½ g·s/(f(w + s) − f − g·s)) ‖s‖
        (-0.1, False, False, 0.5),  # poor
        (-0.5, True, False, 1.0),  # fair
        (-0.9, True, False, 4.0),  # good, at the radius
        (-0.9, False, True, 4.0),  # good, within
    ],
)
def test_radius_after_a_step(change, boundary, first, radius):
    zero = torch.zeros(1)
    step = Step(zero, zero, 1, boundary, 1.0)
    assert next_radius(1.0, step, -1.0, change, 1.0, first) == pytest.approx(radius)
