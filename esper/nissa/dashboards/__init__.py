"""A dashboard and alert rules, made from the table of metrics: every query names a metric by its exposed sample."""
