"""Bases on a language model's residual stream; the loss is the next-token cross-entropy on text that no basis has seen."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.schema import Config
from crux.degeneracy.basis import Basis
from crux.degeneracy.compared import logits_basis
from crux.degeneracy.experiments.compare_bases import compared, modularity_of, options, plan_of
from crux.degeneracy.grams import Moments
from crux.degeneracy.options import LastBasis
from crux.runs.experiment import AddRow
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder
from crux.sae import assemble
from crux.sae.formats import saelens
from crux.sae.losses.readout import chunked_cross_entropy
from crux.subjects.hooks import FINAL
from crux.subjects.subject import Subject
from crux.text.held_out import spread_batches


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """Every basis at the hook points that the configuration names, found on training text and ablated on held-out text."""
    wanted, plan = options(config), plan_of(config)
    assert wanted.length is not None, "checks_degeneracy has looked"
    length = wanted.length
    subject = assemble.load(config, torch.float32)
    tokens = assemble.load_tokens(config)
    found_on, judged_on = (
        [
            batch.to(subject.device)
            for batch in spread_batches(stream, context=length, batch=wanted.batch, n_tokens=n * length)
        ]
        for stream, n in ((tokens.train, wanted.samples), (tokens.held_out, wanted.judged))
    )

    def of_logits(hook: str, at: Moments) -> Basis:
        return logits_basis(hook, at, W_U=subject.unembed.W_U, threshold=plan.threshold)

    return compared(
        subject,
        plan=plan,
        found_on=found_on,
        judged_on=judged_on,
        end=FINAL,
        loss=lambda inputs, final: cross_entropy(subject, inputs, final),
        loss_name="cross-entropy, nats a token",
        last=of_logits if wanted.last is LastBasis.logits else None,
        dictionaries={} if wanted.saes is None else decoders(wanted.saes, subject, plan.hooks[:-1]),
        modularity=modularity_of(config),
        add_row=add_row,
    )[1]


@torch.no_grad()
def cross_entropy(
    subject: Subject, tokens: Int[Tensor, "batch pos"], final: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch"]:
    """Of each sequence's next tokens, nats a token."""
    W_U, b_U, softcap = subject.unembed
    hidden, labels = final[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    each = chunked_cross_entropy(hidden, W_U, b_U=b_U, softcap=softcap, labels=labels)
    return each.view(len(tokens), -1).mean(1)


def decoders(folders: Sequence[str], subject: Subject, hooks: Sequence[str]) -> dict[str, Tensor]:
    """Dictionary directions of saved SAEs by the hook point that they write at.

    Raises:
        UserError: an SAE in another basis than the subject's, at a hook point that is not compared, or two at one.
    """
    found: dict[str, Tensor] = {}
    for folder in folders:
        sae, about = saelens.load(Path(folder))
        hook = about.get("hook_name_out", about["hook_name"])
        if about.get("process_weights", subject.process_weights) != subject.process_weights:
            raise UserError(
                f"{folder}: its subject had process_weights={about['process_weights']}, this one {subject.process_weights}"
            )
        if hook not in hooks:
            raise UserError(f"{folder}: an SAE at {hook}; compared are {', '.join(hooks)}")
        if hook in found:
            raise UserError(f"{folder}: a second SAE at {hook}")
        directions = sae.dictionary()
        width = subject.hook_width(subject.check(hook).kind)
        if directions.shape[1] != width:
            raise UserError(f"{folder}: directions of {directions.shape[1]} dimensions; the subject has {width} there")
        found[hook] = directions.detach().double()
    return found
