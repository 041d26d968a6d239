"""PyTorch's side: diffusers' FLUX transformer and torch's attention, on the same card."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.gpu import programs
from benchmarks.gpu.programs import SIZES
from benchmarks.gpu.rows import Row, measured
from rb_jax.config import Config
from rb_jax.sharding.chips import device_flops

Write = Callable[[Row], None]
WARM_UP = 2
# Which attention kernels torch may choose from; the faster of the two is what we compare with.
KERNELS = {"torch's choice": None, "cuDNN": "cudnn"}


def forward(size: str, repeats: int, write: Write) -> None:
    """``FluxTransformer2DModel``, its blocks compiled, one forward and a loop of them."""
    steps, name = SIZES[size].steps, programs.sampler_name(size)
    try:
        import torch
        from diffusers.models.transformers.transformer_flux import (  # noqa: F401
            FluxTransformer2DModel,
        )
    except ImportError as error:
        for what in ("forward", name):
            write(Row(what, "diffusers", note=f"{error.name} is not installed: not measured"))
        return
    config = programs.configuration(size)
    tflop = programs.model_flops(programs.forward_program(config)) / 1e12
    inputs = [(model_inputs(config, seed),) for seed in range(3)]

    def one(given: dict[str, Any]):
        return model(**given)[0]

    def loop(given: dict[str, Any]):
        return sample(model, given, steps)

    with torch.inference_mode():
        model = flux(config)
        for label, kernel in kernels():
            choose(kernel)
            try:
                note = f"attention: {label}; {compile_blocks(model, inputs[0][0])}"
            except RuntimeError as error:
                write(Row("forward", "diffusers", note=f"{label}: {str(error).splitlines()[0]}"))
                continue
            for what, call, count, velocities in (
                ("forward", one, repeats, 1),
                (name, loop, max(3, repeats // 4), steps),
            ):
                times = timed(call, inputs, count)
                check_output(call(*inputs[0]))
                work = velocities * tflop
                write(measured(what, "diffusers", times, work, peak=peak(), note=note))


def attention(size: str, repeats: int, write: Write) -> None:
    try:
        import torch
    except ImportError:
        write(Row(programs.attention_name(1, False), "torch", note="torch is not installed"))
        return
    tokens, heads, width = SIZES[size].attention
    side, what = SIZES[size].matmul, programs.matmul_name(size)
    with torch.inference_mode():
        inputs = [(normal((side, side)), normal((side, side))) for _ in range(3)]
        times = timed(torch.matmul, inputs, repeats, inner=10)
    write(measured(what, "torch", times, 2 * side**3 / 1e12, peak=peak()))
    for rows in SIZES[size].batches:
        for backward in (False, True):
            shape = (rows, tokens, heads, width)
            inputs = [[normal(shape).transpose(1, 2) for _ in range(4)] for _ in range(4)]
            for x in inputs:
                [y.requires_grad_(backward) for y in x[:3]]
            for label, kernel in kernels():
                choose(kernel)
                try:
                    with torch.set_grad_enabled(backward):
                        times = timed(attend(backward), inputs, repeats, inner=10)
                except RuntimeError as error:
                    note = f"{label}: {str(error).splitlines()[0]}"
                    write(Row(programs.attention_name(rows, backward), "torch", note=note))
                    continue
                tflop = programs.attention_flops(size, rows, backward) / 1e12
                what, note = programs.attention_name(rows, backward), f"kernel: {label}"
                write(measured(what, "torch", times, tflop, peak=peak(), note=note))


def attend(backward: bool) -> Callable[..., Any]:
    import torch

    def call(q, k, v, d_out):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return torch.autograd.grad(out, (q, k, v), d_out) if backward else out

    return call


def flux(config: Config) -> Any:
    """Their model in bfloat16 with random numbers of the sizes that ours has (``ours``)."""
    import torch
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from torch import nn

    mmdit = config.model.mmdit
    with torch.device("meta"):
        model = FluxTransformer2DModel(
            patch_size=1,
            in_channels=mmdit.token_width(config.model.autoencoder.latent_channels),
            num_layers=mmdit.double_blocks,
            num_single_layers=mmdit.single_blocks,
            attention_head_dim=mmdit.width // mmdit.heads,
            num_attention_heads=mmdit.heads,
            joint_attention_dim=mmdit.context_width,
            guidance_embeds=mmdit.guidance_embed,
            pooled_projection_dim=config.model.text.width,
            axes_dims_rope=mmdit.axes_dim,
        )
    model = nn.Module.to(model, torch.bfloat16).to_empty(device=device()).eval()
    for name, x in model.named_parameters():
        if name.endswith("bias"):
            x.normal_(0, 0.02)
        elif x.ndim == 1:
            x.normal_(1, 0.1)
        else:
            gain = 0.3 if ".norm" in name and name.endswith("linear.weight") else 1.0
            x.normal_(0, gain / x.shape[1] ** 0.5)
    return model


def model_inputs(config: Config, seed: int) -> dict[str, Any]:
    import torch

    torch.manual_seed(seed)
    model, mmdit = config.model, config.model.mmdit
    side = config.data.image_size // model.autoencoder.downsampling
    side, texts = side // mmdit.patch_size, 2 * model.cme.queries
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
    return {
        "hidden_states": normal((1, side * side, mmdit.token_width(16))),
        "encoder_hidden_states": normal((1, texts, mmdit.context_width)),
        "pooled_projections": normal((1, model.text.width)),
        "timestep": torch.rand(1, device=device(), dtype=torch.bfloat16),
        "guidance": 3.5 + torch.rand(1, device=device()),
        "img_ids": ids.to(device(), torch.bfloat16),
        "txt_ids": torch.zeros(texts, 3, device=device(), dtype=torch.bfloat16),
        "return_dict": False,
    }


def sample(model: Any, given: dict[str, Any], steps: int) -> Any:
    import torch

    times = torch.linspace(1, 0, steps + 1, device=device())
    z = given["hidden_states"].float()
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        now = {"hidden_states": z.bfloat16(), "timestep": t[None].bfloat16()}
        z = z + (t_next - t) * model(**given | now)[0]
    return z


def compile_blocks(model: Any, given: dict[str, Any]) -> str:
    """Compiles the two kinds of blocks, as diffusers advises; on a CPU there is no time for it."""
    import torch

    if device() == "cpu":
        return "not compiled on a CPU"
    begin = time.perf_counter()
    torch._dynamo.reset()
    model.compile_repeated_blocks(fullgraph=True)
    model(**given)
    synchronize()
    return f"blocks compiled by torch.compile in {time.perf_counter() - begin:.0f} s"


def kernels() -> Iterator[tuple[str, str | None]]:
    for label, kernel in KERNELS.items():
        if kernel is None or device() == "cuda":
            yield label, kernel


def choose(kernel: str | None) -> None:
    """Lets torch use that attention kernel only, or all."""
    import torch

    cuda = torch.backends.cuda
    cuda.enable_cudnn_sdp(True)
    for enable in (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp):
        enable(kernel is None)


def timed(
    call: Callable[..., Any], inputs: Sequence[Sequence[Any]], repeats: int, inner: int = 1
) -> list[float]:
    """As ``ours.timed``; on a GPU between two of its own events."""
    import torch

    for number in range(WARM_UP):
        call(*inputs[number % len(inputs)])
    times = []
    for number in range(repeats):
        synchronize()
        begin, clock = time.perf_counter(), None
        if device() == "cuda":
            clock = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            clock[0].record()
        for i in range(inner):
            call(*inputs[(number * inner + i) % len(inputs)])
        if clock:
            clock[1].record()
        synchronize()
        spent = clock[0].elapsed_time(clock[1]) / 1e3 if clock else time.perf_counter() - begin
        times.append(spent / inner)
    return times


def check_output(out: Any) -> None:
    size = float(out.float().square().mean().sqrt())
    if not 1e-3 < size < float("inf"):
        raise SystemExit(f"diffusers: the output's root mean square is {size}")


def normal(shape: Sequence[int]) -> Any:
    import torch

    return torch.randn(tuple(shape), device=device(), dtype=torch.bfloat16)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    import torch

    if device() == "cuda":
        torch.cuda.synchronize()


def peak() -> float | None:
    import torch

    return device_flops(torch.cuda.get_device_name()) if device() == "cuda" else None
