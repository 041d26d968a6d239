"""A stock model beside its import: outputs, and gradients of all parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from safetensors.torch import save_file

from rb_jax.port.component import open_component
from rb_jax.port.exporting import Arrays
from rb_jax.port.family import open_source, porter
from rb_jax.port.importing import detect, import_checkpoint
from rb_jax.port.parity.pair import Inputs
from rb_jax.port.parity.report import Stages, measured
from rb_jax.port.parity.sides import open_sides

GRADIENT_TOLERANCE = 1e-4
FLOOR = 1e-2  # of the model's largest gradient: below it, differences are rounding of the rest


def save(model: Any, folder: Path) -> Path:
    """As the model's own library saves it; the authors' modules as their state dict."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "reasonbrain.safetensors")
    return folder


def imported(model: Any, root: Path, **options: Any) -> tuple[Path, Path]:
    """The import of a stock model, and the stock model's folder."""
    reference = save(model, root / "stock")
    import_checkpoint(reference, root / "imported", **options)
    return root / "imported", reference


def check_loads(kind: Any, folder: Path, reference: Path) -> Any:
    """The model of a folder that lacks nothing, has nothing over and equals ``reference``'s."""
    (model, info), (other, _) = (
        kind.from_pretrained(at, output_loading_info=True) for at in (folder, reference)
    )
    assert not any(info.values()), info
    state = other.state_dict()
    assert all(value.equal(state.pop(name)) for name, value in model.state_dict().items())
    assert not state
    return model


def check_gradients(checkpoint: Path, reference: Path, scratch: Path) -> None:
    """Outputs, and gradients of a random sum of all outputs, of both sides."""
    stages, gradients = outputs_and_gradients(checkpoint, reference, scratch)
    report = measured(stages)
    assert report.passed, report.text()
    floor = FLOOR * max(np.abs(b).max() for _, b in gradients.values())
    errors = {
        name: np.abs(a - b).max() / max(np.abs(b).max(), floor)
        for name, (a, b) in gradients.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= GRADIENT_TOLERANCE, (worst, errors[worst])


def outputs_and_gradients(
    checkpoint: Path, reference: Path, scratch: Path
) -> tuple[Stages, Stages]:
    """Both sides of every stage, and of the gradient of every tensor of the reference."""
    component = open_component(checkpoint)
    pair, part, params, forward, stock, inputs = open_sides(component, reference, seed=1)
    theirs, rng = pair.theirs(stock, part, inputs), np.random.default_rng(5)
    weights = {n: rng.standard_normal(x.shape).astype(np.float32) for n, x in theirs.items()}
    torch.stack(
        [(x * torch.from_numpy(weights[n])).sum() for n, x in theirs.items()]
    ).sum().backward()

    def loss(params: dict[str, Any], inputs: Inputs) -> Any:
        out = forward(params, inputs)
        return sum((x * weights[n]).sum() for n, x in out.items()), out

    gradients, ours = jax.jit(jax.grad(loss, has_aux=True))(params, inputs)
    stages = {n: (np.asarray(ours[n]), x.detach().numpy()) for n, x in theirs.items()}
    source = open_source(save_gradients(stock, scratch / "gradients"))
    _, layout, names = detect(source, component.family.name)
    table = porter(component.family, layout, part, names)
    arrays = Arrays({path: np.asarray(value) for path, value in gradients.items()})
    ported = {n: (next(table.to_torch(arrays, n)), source.files.read(n)) for n in table.sources}
    return stages, ported


@torch.no_grad()
def save_gradients(stock: Any, folder: Path) -> Path:
    """The model's files with gradients in place of the values; zeros where there is none."""
    for value in stock.parameters():
        value.copy_(torch.zeros_like(value) if value.grad is None else value.grad)
    return save(stock, folder)
