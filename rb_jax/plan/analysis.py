"""What the compiler says of one step, and how a terminal shows it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

GIB = 2**30
# What the child leaves in the job's folder.
HLO, FACTS = "optimized.hlo", "facts.json"
REFUSED = 2  # its exit status when not the compiler refused, but we did


@dataclasses.dataclass
class Analysis:
    """What the compiler says of one step; per chip unless named total. JSON: ``to_json``."""

    topology: str
    slices: int
    chips: int
    mesh: dict[str, int]
    hbm_peak_gib: float  # of one device
    hbm_limit_gib: float
    argument_gib: float
    output_gib: float
    alias_gib: float
    temp_gib: float
    executed_tflop: float
    executed_tflop_total: float
    hbm_traffic_gib: float
    collectives: list[dict[str, Any]]
    ops: list[dict[str, Any]]
    predicted_step_s: float
    compute_s: float
    exposed_s: float
    lower_s: float
    compile_s: float
    rss_gib: float
    assumptions: list[str]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def show(result: Analysis, top: int = 20) -> str:
    """Memory, work, communication, the longest ``top`` operations and the predicted step."""
    floor = result.executed_tflop * 1e12
    lines = [
        f"{result.topology} x {result.slices}: {result.chips} chips, mesh {result.mesh}",
        f"memory   peak {result.hbm_peak_gib:.2f} of {result.hbm_limit_gib:.1f} GiB per device "
        f"(arguments {result.argument_gib:.2f}, temporaries {result.temp_gib:.2f}, "
        f"outputs {result.output_gib:.2f} of which aliased {result.alias_gib:.2f})",
        f"work     {result.executed_tflop:.3f} TFLOP a chip, {result.executed_tflop_total:.1f} "
        f"in all; HBM traffic {result.hbm_traffic_gib:.1f} GiB per chip",
        f"step     {result.predicted_step_s:.4f} s = compute {result.compute_s:.4f} "
        f"+ exposed communication {result.exposed_s:.4f}; "
        f"{floor / result.predicted_step_s / 1e12:.1f} TFLOP/s a chip executed",
        f"compile  lower {result.lower_s:.1f} s, compile {result.compile_s:.1f} s, "
        f"{result.rss_gib:.2f} GiB resident",
        "",
        f"{'collective':<20}{'axis':<18}{'runs':>7}{'GiB/chip':>10}{'exposed':>10}"
        f"{'ms':>9}{'exp. ms':>9}",
    ]
    for row in result.collectives:
        lines.append(
            f"{row['kind']:<20}{row['axis']:<18}{row['runs']:>7.0f}{row['gib']:>10.3f}"
            f"{row['exposed_gib']:>10.3f}{row['seconds'] * 1e3:>9.2f}"
            f"{row['exposed_seconds'] * 1e3:>9.2f}"
        )
    lines += ["", f"{'ms':>9}{'runs':>6}{'TFLOP':>9}{'GiB':>8}  bound    operation"]
    for op in result.ops[:top]:
        lines.append(
            f"{op['seconds'] * 1e3:>9.2f}{op['count']:>6.0f}{op['flops'] / 1e12:>9.3f}"
            f"{op['bytes'] / 2**30:>8.2f}  {op['bound']:<8} {op['name']}  {op['where'][-70:]}"
        )
    return "\n".join([*lines, "", *(f"* {line}" for line in result.assumptions)])
