"""Names for a block's activations, by which a setting keeps some of them (rb_jax.config.remat)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from rb_jax.config.remat import NAMES, parse


def name(x: Any, label: str) -> Any:
    """Marks an activation as one that a setting can keep."""
    assert label in NAMES, label
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, label), x)


def checkpointed(body: Callable, setting: str) -> Callable:
    """``body``, the step of a scan, keeping for its backward pass what ``setting`` says."""
    if setting == "off":
        return body
    device, host = ((), ()) if setting == "full" else parse(setting)
    policies = jax.checkpoint_policies
    if host:
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(device),
            names_which_can_be_offloaded=list(host),
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        policy = policies.save_only_these_names(*device)
    if "attention" in device and not host:
        policy = policies.save_from_both_policies(policy, _cudnn_attention)
    # A scan's body needs no barrier against common subexpressions: they cannot leave the loop.
    return jax.checkpoint(body, prevent_cse=False, policy=policy)


def _cudnn_attention(primitive: Any, *_, **__) -> bool:
    """cuDNN's attention with its log-sum-exp, to which no name can be given from outside."""
    return primitive.name.startswith("dot_product_attention_fwd")
