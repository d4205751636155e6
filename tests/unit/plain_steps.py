"""First-order steps in plain NumPy: the oracle of all methods that make some."""

import numpy as np

UPDATES = {
    "nesterov": {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1, "clip": 0.3},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.3, "clip": 0.3, "beta1": 0.8, "beta2": 0.95},
}
"""settings as every first-order method has them"""


class Step:
    """The steps of one point, with its moments.

    Args:
        settings: as those of a method.
    """

    def __init__(self, **settings):
        self.settings = settings
        self.m, self.v, self.t = 0.0, 0.0, 0

    def __call__(self, x, g, eta):
        """The next point, all of them NumPy arrays."""
        had = self.settings.get
        decay, adaptive = had("weight_decay", 0.0), had("optimizer", "sgd") != "sgd"
        g = shortened(g, had("clip"))
        self.t += 1
        if had("optimizer") == "adamw":
            x = (1 - eta * decay) * x
        else:
            g = g + decay * x
        if not adaptive:
            self.m = had("momentum", 0.0) * self.m + g
            return x - eta * (g + had("momentum", 0.0) * self.m if had("nesterov") else self.m)
        first, second = had("beta1", 0.9), had("beta2", 0.999)
        self.m = first * self.m + (1 - first) * g
        self.v = second * self.v + (1 - second) * g**2
        unbiased = self.m / (1 - first**self.t), self.v / (1 - second**self.t)
        return x - eta * unbiased[0] / (np.sqrt(unbiased[1]) + had("eps", 1e-8))


def shortened(g, clip):
    """g min(1, clip/‖g‖)."""
    return g * min(1.0, clip / np.linalg.norm(g)) if clip else g
