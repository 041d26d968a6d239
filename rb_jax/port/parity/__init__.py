"""Parity: our side and PyTorch's on the same random inputs, compared stage by stage in float32.

An imported part runs beside the stock module of its family, a whole model beside
``rb_jax.port.torch.ReasonBrainTorch``. Every stage is fed the same arrays on both sides where that
is possible, so that an error shows at the stage that makes it.
"""

from __future__ import annotations

import os
from pathlib import Path

from rb_jax.checkpoint.stored import load_weights
from rb_jax.editor import check_sampling
from rb_jax.errors import InputError
from rb_jax.port.component import is_component, open_component
from rb_jax.port.parity.report import Report, measured, picture_psnr
from rb_jax.weights.folder import resolve


def compare(checkpoint: str | os.PathLike[str], reference: str | Path, seed: int = 0) -> Report:
    """Runs both sides on random inputs.

    ``checkpoint`` is an imported part, and ``reference`` the stock folder of its family (of the
    authors' modules: their state dict); or a whole model ("shipped" is the package's own), and
    ``reference`` what ``rb-jax export --format=torch`` wrote of it. Raises InputError when PyTorch
    is not installed, and when the two do not belong together.
    """
    import rb_jax.port.torch  # noqa: F401, says what to install

    check_sampling(seed)
    folder, reference = resolve(checkpoint), Path(reference)
    if is_component(folder):
        from rb_jax.port.parity.sides import run_part

        return measured(run_part(open_component(Path(folder)), reference, seed))
    from rb_jax.port.parity.whole import run_whole

    config, params = load_weights(folder)
    if config.train.task != "edit":
        raise InputError(f"{checkpoint} holds an autoencoder: import its export, and compare that")
    stages, edits = run_whole(config, params, reference, seed)
    return measured(stages, picture_psnr(*edits))
