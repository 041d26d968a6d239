import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def nested_text():
    """Optimized HLO of ``programs.nested`` on 8 host devices."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    return subprocess.run(
        [sys.executable, str(Path(__file__).with_name("programs.py"))],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
