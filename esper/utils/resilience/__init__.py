"""Resilience: what failures mean, when a call is tried again, and when a service is left alone for a while."""
