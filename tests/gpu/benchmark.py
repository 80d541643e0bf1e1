"""Speed and peak memory of training on the GPU: `python -m tests.gpu.benchmark`, about two minutes on an H100.

It prints one row per shape: tokens per second, time per step, peak memory, and the share of the GPU's rate at a large bfloat16 product.
The rows are also written to benchmark.json in the folder that the environment variable OUT names.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch.utils.flop_counter import FlopCounterMode

from crux.sae.architectures.site import Site
from crux.sae.architectures.topk import TopKSAE
from crux.sae.losses.mse import mse
from crux.sae.training.sae_module import SAEModule
from crux.subjects.load import load_subject
from crux.subjects.subject import Subject
from tests.support.architectures import make_arguments
from tests.support.cuda import BFLOAT16, DEVICE
from tests.support.small_runs import (
    Loss,
    draw_token_batches,
    make_gpt2,
    make_module,
    make_sae,
    make_training_batches,
    run_fit,
)

WARM_UP, TIMED = 10, 30
"""Steps before the measurement, and measured steps."""


class Row(NamedTuple):
    """The measurement of one shape."""

    name: str
    tokens_per_second: float
    ms_per_step: float
    peak_gib: float
    tflops_per_step: float
    """Floating-point operations per step, counted by torch, in 10¹²."""
    share: float
    """Operations per second as a share of the rate at a large product of bfloat16 matrices."""


class Shape(NamedTuple):
    """A training that is measured."""

    name: str
    subject: Callable[[], Subject]
    loss: Loss
    layer: int
    ratio: int
    """Latents per dimension of the residual stream."""
    batch: int
    context: int


def packaged_model() -> Subject:
    return load_subject("tiny", process_weights=False)


def random_model() -> Subject:
    return make_gpt2(n_layers=8, d_model=128, n_heads=4, d_vocab=2048, n_ctx=256)


def gpt2_small() -> Subject:
    """Return a network with the shape of GPT-2 small and random weights."""
    return make_gpt2(n_layers=12, d_model=768, n_heads=12, d_vocab=50257, n_ctx=1024)


SHAPES = [
    Shape("packaged model, e2e_ds, 4 × 256", packaged_model, "e2e_ds", 6, 16, 4, 256),
    Shape("packaged model, local, 4 × 256", packaged_model, "local", 6, 16, 4, 256),
    Shape("packaged model, e2e_ds, 64 × 256", packaged_model, "e2e_ds", 6, 16, 64, 256),
    Shape("8 × 128 random, e2e_ds, 64 × 256", random_model, "e2e_ds", 6, 16, 64, 256),
    Shape("8 × 128 random, local, 64 × 256", random_model, "local", 6, 16, 64, 256),
    Shape("GPT-2 small, e2e_ds, 8 × 1024", gpt2_small, "e2e_ds", 6, 60, 8, 1024),
    Shape("GPT-2 small, local, 8 × 1024", gpt2_small, "local", 6, 60, 8, 1024),
]
SAE_SHAPES = [(512, 8192, 32), (768, 24576, 32)]
"""d_model, number of latents and k of the TopK SAEs whose step is measured by itself, on 8,192 tokens."""


def time_calls(call: Callable[[], object], *, warm_up: int, timed: int) -> float:
    """Return the median time of a call on the device, in seconds."""
    seconds = []
    for i in range(warm_up + timed):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if i >= warm_up:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def matmul_rate(n: int = 8192) -> float:
    """Return the rate of an n × n × n product of random bfloat16 matrices, in operations per second."""
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / time_calls(lambda: a @ b, warm_up=3, timed=10)


class TimeSteps(L.Callback):
    """Measures the time of the steps after the warm-up, without waiting in between."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM_UP:
            torch.cuda.synchronize()
            self._start = time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._start


def measure_training(shape: Shape, rate: float) -> Row:
    """Train in bfloat16 through Lightning, as a job does, with shuffled activations for the local loss."""
    subject = shape.subject().to(device=DEVICE, dtype=torch.bfloat16)
    hook = f"blocks.{shape.layer}.hook_resid_pre"
    site = Site(hook, hook, make_sae(subject, n_latents=shape.ratio * subject.d_model))
    module = make_module(shape.loss, subject, sites=[site], max_steps=WARM_UP + TIMED, log_every=10)
    tokens = draw_token_batches(subject, n=WARM_UP + TIMED, batch=shape.batch, pos=shape.context)
    source = make_training_batches(shape.loss, subject, tokens, sites=[site], group=4)
    watch, rows = TimeSteps(), module.configure_callbacks()
    module.configure_callbacks = lambda: [*rows, watch]
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        run_fit(module, source, checkpoints=Path(folder), hardware=BFLOAT16)
    peak = torch.cuda.max_memory_allocated()
    operations = count_operations(module.to(DEVICE), source, local=shape.loss == "local")
    return make_row(shape.name, shape.batch * shape.context, watch.seconds / TIMED, operations, peak, rate)


def count_operations(module: SAEModule, source: Sequence[Any], *, local: bool) -> float:
    """Return the operations of one step, for the local loss with those of the clean pass of its activations."""
    with FlopCounterMode(display=False) as counter:
        batch = source[0]  # of the local loss: computes the first group of four batches
    clean = counter.get_total_flops() / 4 if local else 0
    with FlopCounterMode(display=False) as counter, torch.autocast(DEVICE.type, torch.bfloat16):
        module.training_step(batch if local else batch.to(DEVICE), 0).backward()
    return clean + counter.get_total_flops()


def measure_sae_step(d_model: int, n_latents: int, k: int, rate: float, *, tokens: int = 8192) -> Row:
    """Measure encoding, decoding, backward pass, clipping and optimiser step of one TopK SAE on given activations."""
    arguments = make_arguments(d_model=d_model, n_latents=n_latents, init="tied", init_norm=1.0)
    sae = TopKSAE(**arguments, k=k).to(DEVICE)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4, fused=True)
    x = torch.randn(tokens, d_model, device=DEVICE)

    def compute_gradients() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = mse(sae(x), x, weight=None)
        loss.backward()

    def step() -> None:
        compute_gradients()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    torch.cuda.reset_peak_memory_stats()
    seconds = time_calls(step, warm_up=5, timed=20)
    peak = torch.cuda.max_memory_allocated()
    with FlopCounterMode(display=False) as counter:
        compute_gradients()
    name = f"TopK step, d {d_model}, F {n_latents:,}, k {k}, {tokens:,} tokens"
    return make_row(name, tokens, seconds, counter.get_total_flops(), peak, rate)


def make_row(name: str, tokens: int, seconds: float, operations: float, peak: int, rate: float) -> Row:
    """Return the row of a step that took `seconds`."""
    share = operations / seconds / rate
    return Row(name, tokens / seconds, 1e3 * seconds, peak / 2**30, operations / 1e12, share)


def main() -> None:
    """Measure all shapes, print them, and write them to $OUT/benchmark.json if OUT is set."""
    rate = matmul_rate()
    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "bfloat16_tflops": rate / 1e12,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'':45} {'tokens/s':>11} {'ms/step':>8} {'GiB':>6} {'TFLOP':>8} {'share':>6}", flush=True)
    rows: list[Row] = []
    measurements: list[Callable[[], Row]] = [
        *(lambda shape=shape: measure_training(shape, rate) for shape in SHAPES),
        *(lambda shape=shape: measure_sae_step(*shape, rate) for shape in SAE_SHAPES),
    ]
    for measure in measurements:
        row = measure()
        rows.append(row)
        print(
            f"{row.name:45} {row.tokens_per_second:11,.0f} {row.ms_per_step:8.2f} {row.peak_gib:6.2f} "
            f"{row.tflops_per_step:8.3f} {row.share:6.1%}",
            flush=True,
        )
        torch.cuda.empty_cache()
        if out := os.environ.get("OUT"):
            results = {"machine": machine, "rows": [each._asdict() for each in rows]}
            Path(out, "benchmark.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
