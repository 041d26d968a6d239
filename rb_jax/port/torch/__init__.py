"""ReasonBrain in PyTorch, over the stock modules of diffusers, transformers and PEFT; no JAX.

model = ReasonBrainTorch.from_pretrained("exported")
model.edit("street.png", "What would happen if it rained for a week?").save("edited.png")
"""

from importlib.util import find_spec

from rb_jax.errors import InputError

_MISSING = [name for name in ("torch", "transformers", "diffusers", "peft") if not find_spec(name)]
if _MISSING:
    raise InputError(
        f"{', '.join(_MISSING)} not installed; they are the extra [torch]: pip install '.[torch]' "
        "in the folder of rb_jax"
    )

from rb_jax.port.torch.reasonbrain import ReasonBrainTorch as ReasonBrainTorch  # noqa: E402
