"""The bench of latencies runs; what it prints are times of what was done."""

import re

from bench.latency import OPS, orchestration, surgery


def test_every_line_is_a_time(capsys):
    surgery(2, OPS[:1])
    orchestration(2, repeats=4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 4
    assert all(float(time) > 0 for line in lines for time in re.findall(r"median ([0-9.]+)", line))
