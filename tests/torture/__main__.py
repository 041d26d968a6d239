"""``python -m tests.torture``: what training promises, tried by force; a table of what happened.

Exit status 1 when anything was wrong. docs/reliability.md holds the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests import buckets
from tests.torture import child, damage, elastic, stops


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--devices", default="1,2,4,8", help="every pair of these; empty: none")
    parser.add_argument("--processes", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", type=int, default=200, help="of a run that changes devices")
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--disks", type=int, default=20, help="needs the right to mount a tmpfs")
    parser.add_argument(
        "--bucket", action="store_true", help="kills and stops with the workdir in a bucket"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rb_jax_torture_"))
    try:
        if args.bucket:
            args.flips = args.cuts = args.disks = 0
            args.devices, args.processes = "", False
            with buckets.google():
                child.BUCKET = f"gs://{buckets.BUCKET}"
                results = torture(args, folder)
        else:
            results = torture(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    wrong = [text for result in results.values() for text in result["wrong"]]
    print("\n".join(["", *wrong[:50], f"{len(wrong)} wrong"]))
    return 1 if wrong else 0


def torture(args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    counts = [int(number) for number in args.devices.split(",") if number]
    chosen = list(itertools.product(counts, counts))
    peace = stops.peaceful(folder)
    parts = {
        "damage": (
            args.flips + args.cuts,
            lambda: damage.damage(peace, args.flips, args.cuts, args.seed),
        ),
        "kills": (args.kills, lambda: stops.kills(peace, folder, args.kills, args.seed)),
        "stops": (args.stops, lambda: stops.stops(peace, folder, args.stops, args.seed)),
        "disks": (args.disks, lambda: damage.full_disks(peace, folder / "disks", args.disks)),
        "elastic": (
            len(chosen) + args.processes,
            lambda: elastic.pairs(folder / "elastic", chosen, args.processes, args.steps),
        ),
    }
    results = {}
    for name, (count, part) in parts.items():
        if count:
            begin = time.monotonic()
            result = part()
            results[name] = result | {"seconds": round(time.monotonic() - begin)}
            shown = [f"{k} {len(v) if k == 'wrong' else v}" for k, v in results[name].items()]
            print(f"{name}: {', '.join(shown)}", flush=True)
            for text in result["wrong"]:
                print(f"  {text}", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
