"""The authors' modules against the torch modules of rb_jax.port.torch."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("peft")

from safetensors.torch import load_file  # noqa: E402

from rb_jax.errors import InputError  # noqa: E402
from rb_jax.port.component import open_component  # noqa: E402
from rb_jax.port.exporting import export_checkpoint  # noqa: E402
from rb_jax.port.parity import compare  # noqa: E402
from tests.port.parity import check, stock  # noqa: E402


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The import of the authors' modules, and their state dict."""
    root = tmp_path_factory.mktemp("official")
    return check.imported(stock.official(), root, settings=stock.HEADS)


def test_gradients(official, tmp_path):
    check.check_gradients(official[0], official[1], tmp_path)


def test_export_is_a_state_dict_of_the_modules(official, tmp_path):
    export_checkpoint(official[0], "official", tmp_path / "out")
    state = load_file(tmp_path / "out" / "reasonbrain.safetensors")
    modules = stock.official()
    modules.load_state_dict(state)  # strict
    theirs = load_file(official[1] / "reasonbrain.safetensors")
    assert all(value.equal(theirs[name]) for name, value in state.items())


def test_another_model_is_refused(official, tmp_path):
    other = check.save(stock.official(cme=dict(width=48)), tmp_path / "other")
    with pytest.raises(InputError, match="cme/textual_enhancer/.* has shape"):
        compare(official[0], other)
    assert open_component(official[0]).part.model.frce.heads == 5
