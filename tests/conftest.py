"""Settings of all tests: programs are tiny and run once, so XLA should not spend time on them."""

import os
import sys

import pytest

from tests import quick

# Nor should it take programs from the runs before, or leave any to the user.
os.environ |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_COMPILATION_CACHE_DIR": "unused"}
# What a developer may have set is not what users have: modules are kept, output is buffered.
sys.dont_write_bytecode = False
for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
    os.environ.pop(name, None)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick.FLAGS}"


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory):
    """A weights folder of the small model with random values."""
    from rb_jax.weights.folder import save_weights
    from tests import tiny

    folder = tmp_path_factory.mktemp("weights") / "random"
    save_weights(folder, tiny.CONFIG, tiny.params())
    return folder


@pytest.fixture(scope="session")
def buckets():
    """Scheme -> the address of an empty bucket, on servers of this machine."""
    from tests.buckets import both

    with both() as addresses:
        yield addresses


@pytest.fixture(scope="session")
def editor(weights_folder):
    """Editor of the small model; shared, so that its programs are compiled once."""
    from rb_jax import editor
    from rb_jax.checkpoint import stored
    from tests import tiny

    with pytest.MonkeyPatch.context() as patch:
        for module in (editor, stored):  # tracing the definition anew takes seconds
            patch.setattr(module, "definition", tiny.definition)
        return editor.Editor.from_pretrained(weights_folder)
