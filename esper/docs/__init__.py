"""Documents that are shipped: guides, runbooks and worked examples; ``python -m esper docs list`` names them."""
