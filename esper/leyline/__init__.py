"""Leyline: the contracts that every subsystem shares. Stages, actions, codes, configuration, state and events.

No arithmetic lives here, and nothing of esper but ``utils`` is imported.
"""
