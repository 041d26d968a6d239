"""The flow model: a FLUX-architecture MMDiT."""

from rb_jax.mmdit.model import MMDiT as MMDiT
