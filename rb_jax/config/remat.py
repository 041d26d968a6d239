"""Settings of what a block keeps for its backward pass (the group ``remat``).

A setting is ``off`` (keep all), ``full`` (recompute all from the block's input) or the names to
keep, comma-separated, e.g. ``qkv,attention,mlp``; ``mlp@host`` is moved to host memory meanwhile.
"""

from __future__ import annotations

# What blocks name, in the order in which they compute it.
NAMES = {
    "input": "the block's input, which a scan always keeps; name it to move it to the host",
    "modulation": "shift, scale and gate (MMDiT)",
    "qkv": "queries, keys and values as the projection gives them",
    "attention": "the attention's output, and the kernel's log-sum-exp",
    "proj": "the attention's output projection",
    "mlp": "the feed-forward's hidden layer before its non-linearity",
    "out": "the block's last projection",
}


def parse(setting: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names kept on the device, names moved to the host); ValueError for an unknown name."""
    device, host = [], []
    for word in filter(None, (part.strip() for part in setting.split(","))):
        label, _, place = word.partition("@")
        if label not in NAMES or place not in ("", "host"):
            choices = ", ".join(NAMES)
            raise ValueError(f"{word!r} is not off, full, or names among {choices} (or NAME@host)")
        (host if place else device).append(label)
    return tuple(device), tuple(host)
