"""The optimisation clock."""

import time

import torch

from hpcopt.record import Clock


def test_the_clock_runs_during_steps_only():
    clock = Clock(torch.device("cpu"))
    clock.start()
    time.sleep(0.05)
    clock.start()  # a second start does not lose what ran
    time.sleep(0.05)
    assert clock.now() >= 0.1
    clock.pause()
    seconds = clock.seconds
    time.sleep(0.05)
    clock.pause()
    assert clock.seconds == clock.now() == seconds >= 0.1
