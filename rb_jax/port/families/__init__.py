"""The families of models that are read and written; a file each."""

from rb_jax.port.families import clip, flux, flux_vae, llava, reasonbrain, sam
from rb_jax.port.family import Family

# In the order in which files are tried: a LLaVA also holds a CLIP.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        flux.FAMILY,
        flux_vae.FAMILY,
        llava.FAMILY,
        sam.FAMILY,
        reasonbrain.FAMILY,
        clip.FAMILY,
    )
}
