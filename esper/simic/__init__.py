"""Simic: learning. Rewards, the TorchRL environment, and what learns from them."""
