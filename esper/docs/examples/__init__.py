"""Worked examples, each a command: ``python -m esper.docs.examples.own_policy --help``."""
