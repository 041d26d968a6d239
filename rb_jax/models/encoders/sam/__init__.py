"""Segment Anything: the model, and masks of everything in a picture."""

from rb_jax.models.encoders.sam.model import SAM as SAM
from rb_jax.models.encoders.sam.prompt_encoder import Prompts as Prompts
