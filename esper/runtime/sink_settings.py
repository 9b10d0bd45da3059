"""What the settings say in which runs and workers ask for sinks and a trace."""

METRICS_PORT = "port of an endpoint for Prometheus; 0 = any that is free, -1 = none"

METRICS_HOST = "address that it listens on; 127.0.0.1 = this machine alone"

TRACE = "where spans go: a file, or otlp:URL of an OpenTelemetry collector; empty = nowhere"

SINKS = "further places for rounds and events, with commas between: console, json[:FILE], wandb[:PROJECT], mlflow[:URI]"
