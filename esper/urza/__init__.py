"""Urza: the store. Checkpoints on disk that load without executing anything."""
