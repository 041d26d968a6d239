"""The flow model: a FLUX-architecture MMDiT."""

from rb_jax.models.mmdit.model import MMDiT as MMDiT
