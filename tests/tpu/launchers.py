"""Running the launchers with programs of our own in the place of gcloud, srun, scontrol and tar."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).parents[2]
TPU = REPO / "tpu"


def load(name: str) -> ModuleType:
    """A module of tpu/, which is a folder of scripts and not a package."""
    spec = importlib.util.spec_from_file_location(f"tpu_{name}", TPU / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Writes its arguments down, then answers with the next line of the file named after what is asked:
# an exit code and some output. The last line is for all further questions.
_FAKE = r"""#!/usr/bin/env bash
exec 9>>"$FAKE/lock" && flock 9
{ printf '%q ' "${0##*/}" "$@"; echo; } >>"$FAKE/log"
case "${0##*/} $*" in
  *"queued-resources describe"*) key=state ;;
  *"tpu-vm describe"*) key=node ;;
  *"queued-resources create"*) key=create ;;
  *"queued-resources delete"*) key=delete ;;
  *"tpu-vm scp"*) key=scp ;;
  *"worker.sh setup"*) key=setup ;;
  *"worker.sh mount"*) key=mount ;;
  *"worker.sh run"*) key=train ;;
  *) key=${0##*/} ;;
esac
[[ ! -f $FAKE/$key-$5 ]] || key=$key-$5
[[ -f $FAKE/$key ]] || exit 0
read -r code output <"$FAKE/$key"
[[ $(wc -l <"$FAKE/$key") == 1 ]] || sed -i 1d "$FAKE/$key"
if ((code)); then echo "$output" >&2; else echo "$output"; fi
exit "$code"
"""


class Fakes:
    """Scripted answers, and what was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for program in ("gcloud", "srun", "scontrol", "xpk", "tar"):
            path = folder / "bin" / program
            path.write_text(_FAKE)
            path.chmod(0o755)

    def answers(self, key: str, *lines: str | int) -> None:
        (self.folder / key).write_text("".join(f"{line}\n" for line in lines))

    def calls(self, *words: str) -> list[list[str]]:
        """The calls that hold all these words, as lists of arguments."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [call for line in lines if set(words) <= set(call := shlex.split(line))]

    def run(self, *command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [str(word) for word in command],
            env={**os.environ, "PATH": path, "FAKE": str(self.folder), **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )
