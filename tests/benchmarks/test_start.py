"""What the benchmark of starts prints; it measures real commands, which no test waits for."""

import os

from benchmarks import start


def test_a_row_for_each_start_with_ratios():
    ours = dict.fromkeys(start.STARTS, (6.0, 9.0))
    theirs = dict.fromkeys(start.STARTS, (12.0, 36.0))
    head, *lines = start.table(list(start.STARTS), ours, theirs).splitlines()
    assert head.split()[0] == "start" and len(lines) == len(start.STARTS)
    assert lines[0].split()[-6:] == ["6.00", "9.00", "12.00", "36.00", "0.50", "0.25"]
    assert start.table(["edit warm"], ours).splitlines()[1].split()[-2:] == ["6.00", "9.00"]


def test_a_process_is_asked_for_its_cpu_seconds():
    used = os.times()
    assert abs(start.cpu_seconds(os.getpid()) - used.user - used.system) < 1
