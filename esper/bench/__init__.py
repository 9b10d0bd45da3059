"""The instrument: what Esper costs, measured with its correctness. ``python -m esper.bench``."""
