"""Worlds whose time passes only when somebody waits."""

import random

from esper.utils.resilience.world import World


class Simulated:
    """A clock that counts what is slept and what calls take, and chance from a seed."""

    def __init__(self, seed=0):
        self.time, self.slept = 1000.0, []
        self.world = World(lambda: self.time, self.sleep, random.Random(seed).random)

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds
