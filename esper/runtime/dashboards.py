"""``esper dashboards export``: files with which Prometheus and Grafana watch runs and workers."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from esper.nissa.dashboards.alerts import alert_rules
from esper.nissa.dashboards.panels import grafana_dashboard
from esper.nissa.dashboards.queries import JOB
from esper.utils.files import replace_file
from esper.utils.paths import user_path
from esper.utils.settings import Parser, SettingsError
from esper.utils.terminal import output

TARGETS = "127.0.0.1:9464,127.0.0.1:9465"
"""Where a run and a worker are looked for, if nothing else is said."""

TARGET = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")

RULES, SCRAPE, DASHBOARD = "prometheus/esper.rules.yml", "prometheus/prometheus.yml", "grafana/dashboards/esper.json"


def dashboards(arguments: Sequence[str], out: TextIO | None = None) -> None:
    """Run ``export DIRECTORY [--targets HOST:PORT,...]``.

    Args:
      arguments: words after ``esper dashboards``.
      out: where a line for every file goes.

    Raises:
      SettingsError: the words are not as above, or the directory cannot be written.
      SystemExit: ``--help``.
    """
    out, given = output(out), _parse(arguments)
    folder = user_path(given.directory)
    for name, text in exported(given.targets.split(",")).items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text.encode())
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror}; expected a directory that can be written") from None
        out.write(f"{path}\n")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    about = "A Grafana dashboard, Prometheus alert rules, and what provisions both."
    parser = Parser(prog="esper dashboards", description=about, allow_abbrev=False)
    parser.add_argument("action", choices=("export",))
    parser.add_argument("directory", help="where the files go; those of the same names are replaced")
    help = f"what is scraped: --metrics-port of runs and workers (default: {TARGETS})"
    parser.add_argument("--targets", default=TARGETS, metavar="HOST:PORT,...", help=help)
    given = parser.parse_args(list(arguments))
    if not given.directory.strip():
        raise SettingsError(f"dashboards export {given.directory!r}: expected a directory")
    for target in given.targets.split(","):
        found = TARGET.fullmatch(target)
        if found is None or not 1 <= int(found[2]) <= 65535:
            raise SettingsError(f"--targets {target!r}: expected HOST:PORT, several with commas between")
    return given


def exported(targets: Sequence[str]) -> dict[str, str]:
    """Every file's text by its name."""
    source = {"name": "Prometheus", "type": "prometheus", "access": "proxy", "isDefault": True}
    provider = {"name": JOB, "type": "file", "options": {"path": "/var/lib/grafana/dashboards"}}
    scrape = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "15s"},
        "rule_files": [Path(RULES).name],
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": list(targets)}]}],
    }
    return {
        DASHBOARD: json.dumps(grafana_dashboard(), indent=2) + "\n",
        "grafana/provisioning/dashboards/esper.yml": to_yaml({"apiVersion": 1, "providers": [provider]}),
        "grafana/provisioning/datasources/prometheus.yml": to_yaml(
            {"apiVersion": 1, "datasources": [source | {"url": "http://127.0.0.1:9090"}]}
        ),
        SCRAPE: to_yaml(scrape),
        RULES: to_yaml(alert_rules()),
    }


def to_yaml(value: Any, indent: str = "") -> str:
    """Dicts and lists as blocks of YAML; words and numbers as JSON has them, which is YAML, too."""
    if isinstance(value, dict):
        return "".join(f"{indent}{name}:{_nested(member, indent)}" for name, member in value.items())
    lines = [to_yaml(member, indent + "  ") if isinstance(member, dict) else None for member in value]
    return "".join(
        f"{indent}- {json.dumps(member)}\n" if text is None else f"{indent}- {text[len(indent) + 2 :]}"
        for member, text in zip(value, lines, strict=True)
    )


def _nested(member: Any, indent: str) -> str:
    if isinstance(member, dict | list):
        return "\n" + to_yaml(member, indent + "  ")
    return f" {json.dumps(member, ensure_ascii=False)}\n"
