"""A step never waits for the device: it reads no scalar, and no shape depends on values."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from crux.sae.architectures import active_codes
from crux.sae.architectures.options import Auxk
from crux.sae.architectures.site import Site
from crux.sae.training.sparsity import Steering
from tests.support.architectures import ARCHITECTURES, make_arguments
from tests.support.small_runs import (
    HOOK,
    LOSSES,
    Loss,
    draw_token_batches,
    make_gpt2,
    make_module,
    make_sae,
    make_training_batches,
    run_fit,
)

WAITING_OPERATIONS = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique",
    "equal",
    "bincount",
)


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose between sparse and dense products as on a GPU, where the number of active codes is not known."""
    monkeypatch.setattr(active_codes, "is_on_cpu", lambda values: False)


class ReadingMethods(TorchFunctionMode):
    """Records tensor methods that read from the device but appear as no operation while everything is on the CPU."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("tolist", "numpy", "cpu", "__array__"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Records the operations that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.seen: set[str] = set()
        self.methods = ReadingMethods(self.found)

    def __enter__(self) -> "Waits":
        self.methods.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.methods.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen.add(name)
        by_mask = name in ("index", "index_put_", "_index_put_impl_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if by_mask or name.lstrip("_").startswith(("unique", "nonzero")) or name in WAITING_OPERATIONS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x + 1),
    ],
)
def test_waiting_is_detected(waits: Any) -> None:
    with Waits() as seen:
        waits(torch.arange(4.0) - 1)
    assert seen.found


class WatchBatch(L.Callback):
    """Watches one batch from its first hook until Lightning has finished it."""

    def __init__(self, batch: int) -> None:
        self.batch, self.waits = batch, Waits()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            self.waits.__enter__()
        elif batch_idx == self.batch + 1:
            self.waits.__exit__(None, None, None)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_between_two_rows_does_not_wait(
    loss: Loss, accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watch forward, backward, clipping, optimiser and schedule in the trainer, with AuxK and a steered λ.

    The watched batch ends the fourth step; with loss=kl_finetune it is the first token batch.
    """
    subject = make_gpt2()
    watch = WatchBatch(4 * accumulate - 1)
    skip = () if loss == "local" else (0, 2)
    module = make_module(
        loss,
        subject,
        log_every=100,
        skip_positions=skip,
        max_norm=1e3,
        auxk=Auxk(0.1, None, 24),
        steering=Steering(4, 6),
    )
    rows = type(module).configure_callbacks(module)
    monkeypatch.setattr(module, "configure_callbacks", lambda: [*rows, watch])
    tokens = draw_token_batches(subject, n=6 * accumulate)
    run_fit(module, make_training_batches(loss, subject, tokens, group=2), checkpoints=tmp_path, accumulate=accumulate)
    assert {"_fused_adam_", "linalg_vector_norm", "threshold_backward", "_embedding_bag"} <= watch.waits.seen, (
        "no whole step was seen"
    )
    assert not watch.waits.found


@pytest.mark.parametrize("loss", LOSSES)
def test_many_saes_at_once_do_not_wait(loss: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watched batch ends the fourth step; the loss of the second SAE is infinite from the first step, but not yet noticed."""
    subject, watch = make_gpt2(), WatchBatch(3)
    sites = [Site(HOOK, HOOK, make_sae(subject)) for _ in range(3)]
    module = make_module(
        loss,
        subject,
        sites=sites,
        sparsity=[0.1, 1e38, 1.0],
        runs=("a", "b", "c"),
        log_every=100,
        max_norm=1e3,
        auxk=Auxk(0.1, None, 24),
    )
    rows = type(module).configure_callbacks(module)
    monkeypatch.setattr(module, "configure_callbacks", lambda: [*rows, watch])
    run_fit(
        module, make_training_batches(loss, subject, draw_token_batches(subject, n=6), group=2), checkpoints=tmp_path
    )
    assert {"_fused_adam_", "linalg_vector_norm", "threshold_backward", "_embedding_bag"} <= watch.waits.seen
    assert not watch.waits.found
    assert module.failed == {"b": 1}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("loss", ["local", "e2e"])
def test_no_architecture_waits(architecture: str, loss: Loss) -> None:
    subject = make_gpt2()
    sites = [
        Site(HOOK, HOOK, ARCHITECTURES[architecture](make_arguments(d_model=subject.d_model, subtract_b_dec=True)))
    ]
    module = make_module(loss, subject, sites=sites, target="sampled")
    source = make_training_batches(loss, subject, draw_token_batches(subject, n=2), sites=sites, target="sampled")
    subject.clean(
        draw_token_batches(subject, n=1)[0], capture=[]
    )  # the attention mask of a length is made only once, and may wait
    with Waits() as seen:
        for i, progress in enumerate((0.0, 0.9)):  # p of p-annealing falls in between
            sites[0].sae.advance(progress)
            module.training_step(source[i], i).backward()
    assert not seen.found
