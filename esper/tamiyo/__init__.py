"""Tamiyo: decisions. Policies that look at the state and choose an action."""
