"""ReasonBrain in JAX: editing a picture by reasoning about a hypothetical instruction."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rb_jax.editor import Editor as Editor

__all__ = ["Editor"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that reading pictures or writing data sets does not load JAX.
    if name == "Editor":
        from rb_jax.editor import Editor

        return Editor
    raise AttributeError(f"module 'rb_jax' has no attribute {name!r}")
