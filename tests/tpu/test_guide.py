"""The guide's commands run as they are written, and the shell files are clean."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rb_jax.storage import CLIENTS
from tests.tpu.launchers import REPO, TPU, Fakes

README = (TPU / "README.md").read_text()
SHELL = [*sorted(TPU.glob("*.sh")), TPU / "slurm.sbatch"]


def commands() -> list[str]:
    """Of the blocks marked as bash: those that need nothing but the checkout."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_guide(tmp_path, command):
    words = shlex.split(command.split(" > ")[0])
    if words[0] == "python3":
        words[0] = sys.executable
    elif "status" not in words:
        words.insert(2, "--dry-run") if "queued" in words[0] else words.insert(1, "--dry-run")
    words = [str(REPO / word) if word.startswith("tpu/") else word for word in words]
    fakes = Fakes(tmp_path)
    done = fakes.run(*words)
    assert done.returncode == 0 and done.stdout, done.stderr
    assert fakes.calls() == [] or "status" in words


def test_links_and_files_of_the_guide():
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", README)) == anchors
    for name in re.findall(r"`(?:tpu/)?([\w]+\.(?:sh|py|yaml|sbatch))`", README):
        assert (TPU / name).exists(), name


def test_every_launcher_is_in_the_guide():
    for path in TPU.iterdir():
        if path.is_file() and path.name not in ("README.md", "common.sh", "worker.sh"):
            assert path.name in README, path.name


def test_docker_copies_what_installing_needs():
    copied = re.findall(r"^COPY (.*) \S+$", (TPU / "Dockerfile").read_text(), re.MULTILINE)
    names = " ".join(copied).split()
    assert all((REPO / name).exists() for name in names)
    assert {"pyproject.toml", "constraints.txt", "rb_jax", "configs"} <= set(names)


@pytest.mark.parametrize("extra", ["tpu", "cuda13"])
def test_the_image_has_the_client_of_buckets(extra):
    text = (TPU / "Dockerfile").read_text()
    values = {**dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE)), "EXTRA": extra}
    (command,) = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    words = shlex.split(re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], command))
    assert words[:2] == ["pip", "install"]
    assert words[-4:] == ["-c", "constraints.txt", f".[{CLIENTS['gs'][1]}]", f"jax[{extra}]"]


def test_the_clients_of_buckets_are_extras_and_pinned():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    pinned = (REPO / "constraints.txt").read_text().splitlines()
    for package, extra in CLIENTS.values():
        assert extra in project["optional-dependencies"]
        assert any(line.startswith(f"{package}==") for line in pinned), package


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck(path: Path):
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [checker, "--external-sources", f"--source-path={TPU}", path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


def test_shell_files_are_strict():
    for path in SHELL:
        text = path.read_text()
        if path.name != "common.sh":  # is sourced
            assert text.startswith("#!/usr/bin/env bash\n# ") and path.stat().st_mode & 0o100
            assert "\nset -euo pipefail\n" in text
