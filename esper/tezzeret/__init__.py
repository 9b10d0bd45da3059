"""Tezzeret: how a network is run. The definition of training and evaluation, and the backends that compute it."""
