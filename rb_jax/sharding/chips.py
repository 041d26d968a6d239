"""The table of accelerators: peaks, memory, links and clocks, as their makers publish them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip; every figure is for the whole chip, rates per second.

    ``cores`` TensorCores of ``mxus`` matrix units each run at ``clock``; a unit of side ``side``
    takes ``rows`` rows per cycle, so that peak = cores x mxus x side^2 x 2 x rows x clock.
    ``link`` is one interconnect link in one direction; on a GPU it is all of NVLink, one direction.
    """

    name: str
    kinds: tuple[str, ...]  # parts of a JAX device_kind, lower case
    flops: float  # dense bf16 FLOP/s
    hbm: int  # bytes
    hbm_rate: float  # bytes/s
    link: float  # bytes/s, one way
    dcn: float  # bytes/s, one way: this chip's share of its host's network
    cores: int = 1
    devices: int = 1  # JAX devices per chip appears as
    mxus: int = 0
    side: int = 0
    rows: int = 1
    sms: int = 0  # streaming multiprocessors of a GPU

    @property
    def is_tpu(self) -> bool:
        return self.mxus > 0

    @property
    def clock(self) -> float:
        """Cycles per second, from the peak; GPUs raise ValueError."""
        if not self.is_tpu:
            raise ValueError(f"{self.name} has no matrix units to derive a clock from")
        return self.flops / (self.cores * self.mxus * self.side**2 * 2 * self.rows)


# Peaks, memory and link rates: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x and NVIDIA's data
# sheets (dense bf16). A TPU link is the published interchip bandwidth over its links, halved for
# one direction where the page counts both: v4 and v5p have 6 links of 50 and 100 GB/s, v5e and v6e
# 4 of 50 and 100, tpu7x 6 of 100. Networks between slices: 200 Gbit/s per host of 4 chips, twice
# that from v6e on; between GPU hosts 400 Gbit/s per GPU. The clocks that follow: v4 1.05 GHz,
# v5e 1.50, v5p 1.75, v6e 1.75, tpu7x 2.20.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", ("v4",), 275e12, 32 * 2**30, 1.2e12, 5.0e10, 6.25e9, 2, 1, 4, 128),
        Chip("v5e", ("v5 lite", "v5e"), 197e12, 16 * 2**30, 8.19e11, 5.0e10, 6.25e9, 1, 1, 4, 128),
        Chip("v5p", ("v5p", "v5"), 459e12, 95 * 2**30, 2.765e12, 1.0e11, 6.25e9, 2, 1, 4, 128),
        Chip("v6e", ("v6",), 918e12, 32 * 2**30, 1.638e12, 1.0e11, 1.25e10, 1, 1, 2, 256, 2),
        Chip("tpu7x", ("7x",), 2307e12, 192 * 2**30, 7.38e12, 1.0e11, 1.25e10, 2, 2, 2, 256, 2),
        Chip("a100", ("a100",), 312e12, 80 * 10**9, 2.039e12, 3.0e11, 2.5e10, sms=108),
        Chip("h100", ("h100",), 989e12, 80 * 10**9, 3.35e12, 4.5e11, 5.0e10, sms=132),
        Chip("h200", ("h200",), 989e12, 141 * 10**9, 4.8e12, 4.5e11, 5.0e10, sms=132),
        Chip("b200", ("b200",), 2250e12, 180 * 10**9, 8.0e12, 9.0e11, 5.0e10, sms=148),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that a JAX ``device_kind`` names; None for kinds outside the table, such as CPUs."""
    kind = device_kind.lower()
    matching = (chip for chip in CHIPS.values() if any(part in kind for part in chip.kinds))
    return next(matching, None)


def device_flops(device_kind: str) -> float | None:
    """bf16 FLOP/s of one JAX device of this kind, None outside the table."""
    chip = chip_of(device_kind)
    return chip.flops / chip.devices if chip else None
