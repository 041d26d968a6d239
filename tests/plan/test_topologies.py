import importlib.util
import os
import subprocess
import sys

import pytest

from rb_jax.errors import InputError
from rb_jax.plan import topologies
from rb_jax.sharding.chips import CHIPS


def test_every_name_parses():
    for name in topologies.names():
        topology = topologies.parse(name)
        assert topology.name == name
        assert topology.chips >= topology.hosts >= 1


@pytest.mark.parametrize(
    ("name", "slices", "chips", "hosts", "devices"),
    [
        ("v5p:2x2x1", 1, 4, 1, 4),
        ("v5p:8x8x16", 1, 1024, 256, 1024),
        ("v5e:16x16", 2, 512, 128, 512),
        ("v6e:8x8", 1, 64, 16, 64),
        ("v4:2x2x1", 3, 12, 3, 12),
        ("tpu7x:2x2x1", 1, 4, 1, 8),
        ("h200:8", 1, 8, 1, 8),
        ("h200:64", 1, 64, 8, 64),
        ("h100:2", 1, 2, 1, 2),
        ("b200:8", 1, 8, 1, 8),
    ],
)
def test_sizes(name, slices, chips, hosts, devices):
    topology = topologies.parse(name, slices)
    assert (topology.chips, topology.hosts, topology.devices) == (chips, hosts, devices)


@pytest.mark.parametrize(
    ("name", "near"),
    [("v5p:2x2x3", "v5p:2x2x1"), ("v5e:16x17", "v5e:16x16"), ("h300:8", "h200:8"), ("v5p", "v5p:")],
)
def test_an_unknown_name_is_answered_with_its_neighbours(name, near):
    with pytest.raises(InputError, match="not known") as caught:
        topologies.parse(name)
    message = str(caught.value)
    assert repr(name) in message and near in message and "\n" not in message


def test_slices():
    with pytest.raises(InputError, match="slices=0"):
        topologies.parse("v5p:2x2x1", 0)
    with pytest.raises(InputError, match="only TPUs"):
        topologies.parse("h200:8", 2)


@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if not chip.is_tpu])
def test_gpu_descriptions_are_balanced_and_name_the_chip(name):
    text = topologies.gpu_target_config(CHIPS[name])
    assert text.count("{") == text.count("}") > 2
    assert f"core_count: {CHIPS[name].sms} " in text
    assert f'"NVIDIA {name.upper()}"' in text


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("v5p:2x2x1", "libtpu", "[plan]"), ("h200:1", "jax_plugins", "[plan-gpu]")],
)
def test_a_missing_compiler_is_named_with_its_extra(name, library, extra):
    """As where it is not installed: a process to which the module is not to be found."""
    script = f"""
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {library!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from rb_jax.plan.topologies import missing, parse
print(missing(parse({name!r}).chip))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert f"the extra {extra}: pip install '.{extra}'" in run.stdout, run.stdout + run.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("name", ["v5e:1x1", "v6e:1x1", "v5p:2x2x1", "v5e:2x4"])
def test_the_compiler_knows_the_smallest_too(name):
    script = (
        f"from rb_jax.plan.topologies import devices, parse\nprint(len(devices(parse({name!r}))))"
    )
    alone = os.environ | {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    run = subprocess.run([sys.executable, "-c", script], env=alone, capture_output=True, text=True)
    assert run.stdout.strip() == str(topologies.parse(name).devices), run.stderr[-2000:]
