"""Fills gke_jobset.yaml in: prints a JobSet for kubectl.

python3 tpu/render.py --name=NAME --tpu=v5p --topology=4x4x4 --slices=4 --image=IMAGE \\
    --workdir=gs://BUCKET/RUN [FLAGS] [-- --config.a.b=VALUE ...] | kubectl apply -f -

What follows -- goes to rb-jax train. Needs nothing but Python; --help lists the flags.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rb_jax" / "sharding"))
from xla_flags import TPUS, flags  # noqa: E402  # pyright: ignore[reportMissingImports]  # the file alone: rb_jax need not be installed

TEMPLATE = Path(__file__).with_name("gke_jobset.yaml")
CLAIM_PATH, BUCKET_PATH = "/data", "/gcs"
# As worker.sh mounts it; why is said there.
BUCKET_OPTIONS = (
    "implicit-dirs",
    "metadata-cache-ttl-secs=60",
    "metadata-cache-negative-ttl-secs=0",
)
# GKE's driver mounts buckets by a container beside ours. 0: without limits, whatever its defaults.
BUCKET_ANNOTATIONS = {
    "gke-gcsfuse/volumes": "true",
    "gke-gcsfuse/cpu-limit": "0",
    "gke-gcsfuse/memory-limit": "0",
    "gke-gcsfuse/ephemeral-storage-limit": "0",
}


@dataclass(frozen=True)
class Machines:
    """How GKE offers a chip."""

    accelerator: str  # the label cloud.google.com/gke-tpu-accelerator
    flat: bool  # topologies are AxB, on one host up to 2x4; else AxBxC


# Hosts have 4 chips, except the flat topologies on one host: 1, 4 or 8.
MACHINES = {
    "v4": Machines("tpu-v4-podslice", flat=False),
    "v5e": Machines("tpu-v5-lite-podslice", flat=True),
    "v5p": Machines("tpu-v5p-slice", flat=False),
    "v6e": Machines("tpu-v6e-slice", flat=True),
    "tpu7x": Machines("tpu7x", flat=False),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


class RenderError(Exception):
    """A flag or the template is wrong; the message is for the user."""


def hosts_and_chips(tpu: str, topology: str, chips_per_host: int | None = None) -> tuple[int, int]:
    """Hosts of a slice and chips of a host. ``chips_per_host`` chooses where GKE offers both:
    2x4 is one host with 8 chips or two with 4. Raises RenderError."""
    flat = MACHINES[tpu].flat
    if not re.fullmatch(r"\d+(x\d+){1,2}", topology):
        raise RenderError(f"--topology={topology}: must be like {'4x4' if flat else '4x4x4'}")
    sides = [int(side) for side in topology.split("x")]
    if flat and topology not in FLAT:
        raise RenderError(f"--topology={topology}: {tpu} has {', '.join(FLAT)}")
    cubes = len(sides) == 3 and all(side and side % 4 == 0 for side in sides)
    if not flat and topology not in SMALL_3D and not cubes:
        raise RenderError(
            f"--topology={topology}: {tpu} has {', '.join(SMALL_3D)} and AxBxC of multiples of 4"
        )
    chips = math.prod(sides)
    offered = (chips,) if flat and chips < 8 else (8, 4) if flat and chips == 8 else (4,)
    if chips_per_host is not None and chips_per_host not in offered:
        choices = " or ".join(map(str, offered))
        raise RenderError(f"--chips-per-host={chips_per_host}: {tpu} {topology} has {choices}")
    per_host = chips_per_host or offered[0]
    return chips // per_host, per_host


def train_args(config: str, workdir: str, slices: int, extra: Sequence[str]) -> list[str]:
    """Arguments of rb-jax train; the mesh as in common.sh: FSDP in a slice, data over slices."""
    args = [f"--config={config}", f"--workdir={workdir}"]
    if not any(arg.startswith("--config.mesh.") for arg in extra):
        args += [f"--config.mesh.data={slices}", "--config.mesh.fsdp=-1"]
    if slices > 1 and not any(arg.startswith("--config.mesh.slices=") for arg in extra):
        args.append(f"--config.mesh.slices={slices}")
    return [*args, *extra]


def check_workdir(workdir: str, claim: str | None) -> None:
    """Raises RenderError unless all pods share it: rb-jax writes to buckets itself."""
    in_claim = claim and workdir.startswith(f"{CLAIM_PATH}/")
    if not in_claim and not re.match(r"(gs|s3)://[^/]+/+[^/]", workdir):
        raise RenderError(
            f"--workdir={workdir}: pods share gs://BUCKET/RUN, s3://BUCKET/RUN, or by --claim=NAME "
            f"{CLAIM_PATH}/..."
        )


def storage(claim: str | None, buckets: Sequence[str]) -> dict[str, Any]:
    """The variables that mount the claim and the buckets. Raises RenderError."""
    volumes, mounts = [], []
    if claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "data", "mountPath": CLAIM_PATH})
    for number, bucket in enumerate(dict.fromkeys(buckets)):
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", bucket):
            raise RenderError(f"--mount={bucket}: must be the name of a bucket, or BUCKET,BUCKET")
        attributes = {
            "bucketName": bucket,
            "mountOptions": ",".join(BUCKET_OPTIONS),
            # On the hosts' network a pod has its own account only if it asks for it.
            "hostNetworkPodKSA": "true",
        }
        csi = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        volumes.append({"name": f"bucket-{number}", "csi": csi})
        mounts.append({"name": f"bucket-{number}", "mountPath": f"{BUCKET_PATH}/{bucket}"})
    annotations = BUCKET_ANNOTATIONS if buckets else {}
    return {"volumes": volumes, "volume_mounts": mounts, "annotations": annotations}


def values_of(args: argparse.Namespace, extra: Sequence[str]) -> dict[str, Any]:
    """What the template's variables stand for. Raises RenderError."""
    # The pods' names, NAME-slice-99-9999-xxxxx, must fit into 63 characters.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", args.name):
        raise RenderError(f"--name={args.name}: lower-case letters, digits and -, at most 40")
    if args.slices < 1 or args.max_restarts < 0:
        raise RenderError("--slices must be at least 1 and --max-restarts at least 0")
    check_workdir(args.workdir, args.claim)
    hosts, chips_per_host = hosts_and_chips(args.tpu, args.topology, args.chips_per_host)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": MACHINES[args.tpu].accelerator,
        "cloud.google.com/gke-tpu-topology": args.topology,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if args.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"}
        tolerations.append(spot)
    return {
        "name": args.name,
        "slices": args.slices,
        "hosts": hosts,
        "chips_per_host": chips_per_host,
        "max_restarts": args.max_restarts,
        "image": args.image,
        "service_account": args.service_account,
        "node_selector": selector,
        "tolerations": tolerations,
        "args": train_args(args.config, args.workdir, args.slices, extra),
        "libtpu_init_args": " ".join(flags(args.tpu)),
        **storage(args.claim, [name for each in args.mount for name in each.split(",")]),
    }


def render(template: str, values: Mapping[str, Any]) -> str:
    """The template with every ${variable} as JSON, which is YAML. Comments stay as they are.

    Raises RenderError when a variable has no value, or a value no variable.
    """
    used: set[str] = set()

    def value(match: re.Match[str]) -> str:
        used.add(match[1])
        if match[1] not in values:
            raise RenderError(f"the template's ${{{match[1]}}} has no value")
        # Kubernetes substitutes $(NAME) in args and env; $$ is a plain $.
        return json.dumps(values[match[1]]).replace("$", "$$")

    lines = template.splitlines(keepends=True)
    text = "".join(
        line if line.lstrip().startswith("#") else re.sub(r"\$\{(\w*)\}", value, line)
        for line in lines
    )
    if unused := sorted(set(values) - used):
        raise RenderError(f"the template has no {', '.join(f'${{{name}}}' for name in unused)}")
    return text


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser("render.py", allow_abbrev=False)
    parser.add_argument("--name", required=True, help="name of the JobSet")
    parser.add_argument("--tpu", required=True, choices=TPUS)
    parser.add_argument("--topology", required=True, help="chips of a slice: 4x4x4, or 4x8 if flat")
    parser.add_argument("--image", required=True, help="made from tpu/Dockerfile")
    parser.add_argument("--workdir", required=True, help="gs://, s3://, or a path in the claim")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--config", default="configs/reason50k_flux.py", help="a path in the image")
    parser.add_argument("--max-restarts", type=int, default=3, help="after failures; default 3")
    parser.add_argument("--chips-per-host", type=int, help="where GKE offers a choice")
    parser.add_argument("--service-account", default="default", help="may use what is mounted")
    mount = f"buckets that the pods see as {BUCKET_PATH}/BUCKET: for data"
    parser.add_argument("--mount", action="append", default=[], metavar="BUCKET,...", help=mount)
    parser.add_argument("--claim", help=f"a ReadWriteMany volume claim, mounted at {CLAIM_PATH}")
    parser.add_argument("--spot", action="store_true", help="on spot nodes")
    return parser.parse_args(list(argv[:cut])), list(argv[cut + 1 :])


def main(argv: Sequence[str] | None = None) -> int:
    args, extra = parse(sys.argv[1:] if argv is None else argv)
    try:
        print(render(TEMPLATE.read_text(), values_of(args, extra)), end="")
    except RenderError as error:
        print(f"render.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
