"""Segment Anything: the model, and masks of everything in a picture."""

from rb_jax.encoders.sam.model import SAM as SAM
from rb_jax.encoders.sam.prompt_encoder import Prompts as Prompts
