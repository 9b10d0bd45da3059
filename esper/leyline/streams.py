"""Named streams of random numbers: each use folds its own number into a key, so that no use shifts another's draws."""

from enum import IntEnum


class Stream(IntEnum):
    """What a key is folded for."""

    ENVIRONMENT = 0
    HOST = 1
    SOW = 2
    GATE = 3
    ORDER = 4
    AUGMENT = 5
    MODULES = 6
    BLOCK = 7
    SEED = 8
    CONTEXT = 9
    SUBSET = 10
    LABELS = 11
    DECISION = 12
    OWN_AUGMENT = 13
    LANDSCAPE = 14
