"""A step on another device than the CPU leaves nothing on the CPU; torch's device `meta`, whose tensors have no values, stands for it."""

import pytest
import torch
from torch import Tensor

from crux.sae.architectures.options import Auxk
from crux.sae.architectures.site import Site
from crux.sae.training.activations import Activations
from crux.sae.training.drawn_labels import DrawnLabels
from crux.sae.training.running_row import RunningRow
from crux.sae.training.sparsity import Steering
from crux.subjects.subject import Subject
from tests.support.architectures import ARCHITECTURES, make_arguments
from tests.support.small_runs import (
    HOOK,
    LOSSES,
    Loss,
    draw_token_batches,
    make_gpt2,
    make_label_gradients,
    make_module,
)

META = torch.device("meta")


def move_subject(subject: Subject, tokens: Tensor) -> Subject:
    """Move a network to `meta`; the arguments of its attention are computed before, because that reads values."""
    subject.clean(tokens, capture=[HOOK])
    arguments = {
        pos: [{k: v.to(META) if isinstance(v, Tensor) else v for k, v in block.items()} for block in blocks]
        for pos, blocks in subject._arguments.items()
    }
    subject.to(device=META)
    subject._arguments = arguments
    return subject


def label_without_generator(q: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return labels; `meta` has no random generator."""
    return torch.zeros(len(q), dtype=torch.long, device=q.device)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_leaves_nothing_on_the_cpu(architecture: str, loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crux.sae.losses.label.draw_labels", label_without_generator)
    monkeypatch.setattr(DrawnLabels, "generator", lambda self, device: torch.Generator())
    (tokens,) = draw_token_batches(make_gpt2(), n=1)
    subject = move_subject(make_gpt2(), tokens)
    site = Site(HOOK, HOOK, ARCHITECTURES[architecture](make_arguments(d_model=subject.d_model, subtract_b_dec=True)))
    skip = () if site.sae.BATCH_WIDE else (0, 2)
    module = make_module(
        loss, subject, sites=[site], skip_positions=skip, auxk=Auxk(0.1, None, 24), steering=Steering(4, 1)
    ).to(META)
    batch = tokens.to(META)
    if loss == "local":
        gradients = make_label_gradients(subject, [site])
        given = {"capture": [HOOK], "generator": torch.Generator()}
        clean, found = gradients.clean(batch, **given) if gradients else (subject.clean(batch, capture=[HOOK]), {})
        flat = [{hook: x.flatten(0, 1) for hook, x in by_hook.items()} for by_hook in (clean.activations, found)]
        batch = Activations(*flat)
    site.sae.advance(0.5)
    total = module.training_step(batch, 0)
    total.backward()
    module.configure_gradient_clipping(None)
    everything = {
        "loss": total,
        **module.row.sums,
        **dict(module.named_buffers()),
        **{f"gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None},
        **dict(site.sae.fold().named_parameters()),
        **dict(site.sae.fold().named_buffers()),
    }
    assert {name: value.device for name, value in everything.items() if value.device != META} == {}
    assert any(name.startswith("gradient") for name in everything)


def test_the_row_of_a_checkpoint_is_moved_to_the_device() -> None:
    """A checkpoint is loaded before the module is on its device; several runs have sums that are no scalars."""
    row = RunningRow([HOOK], separate=True)
    row.load({"sums": {"loss": torch.ones(3)}, "micro_batches": 1})
    row.move_to(META)
    row.add({"loss": list(torch.ones(3, device=META))})
    assert row.means()["loss"].device == META
