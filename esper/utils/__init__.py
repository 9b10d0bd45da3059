"""Utilities without domain words: random numbers, trees of tensors, numerics."""
