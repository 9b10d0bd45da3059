"""Nissa: telemetry. What episodes record, what is read from the records, and the charts and pages that show it."""
