"""Experiment: comparison of bases on a language model's residual stream. The loss is the next-token cross-entropy on held-out text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.degeneracy.comparison import AblationLoss
from crux.degeneracy.experiments.compare_bases import LanguageParts, compare_bases
from crux.degeneracy.options import LanguageBasesJob
from crux.runs.experiment import Experiment, last_row_of_history
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Result
from crux.sae.belonging import Place, check_belonging, saved_hooks
from crux.sae.formats import saelens
from crux.sae.loading import check_embedding, load_model, load_tokens, write_text_report
from crux.sae.losses.readout import chunked_cross_entropy
from crux.subjects.hooks import FINAL
from crux.subjects.subject import Subject
from crux.text.held_out import spread_batches
from crux.training.devices import choose_device


def result(job: LanguageBasesJob, run: ActiveRun) -> Result:
    """Find every basis on training text, and evaluate its ablations on held-out text."""
    options = job.interaction_basis.compare
    tokens = load_tokens(job.data, model=job.model, cache=job.cache)
    write_text_report(tokens, run.folder.path)
    subject = load_model(job.model, device=choose_device(job.trainer.accelerator), dtype=torch.float32)
    check_embedding(tokens, subject)

    def batches(stream: np.ndarray, n: int) -> list[Tensor]:
        n_tokens = n * options.length
        spread = spread_batches(stream, context=options.length, batch=options.batch, n_tokens=n_tokens)
        return [batch.to(subject.device) for batch in spread]

    def loss(inputs: Tensor, final: Tensor) -> Tensor:
        return sequence_cross_entropy(subject, inputs, final)

    held_out = batches(tokens.held_out, options.judged)
    dictionaries = (
        {} if options.saes is None else load_decoders(options.saes, subject, options.hooks[:-1], force=options.force)
    )
    return compare_bases(
        subject,
        options=job.interaction_basis,
        found_on=batches(tokens.train, options.samples),
        loss=AblationLoss("cross-entropy, nats per token", loss, FINAL, held_out),
        language=LanguageParts(subject.unembed.W_U, dictionaries),
        run=run,
        last_step=0,
    )[1]


@torch.no_grad()
def sequence_cross_entropy(
    subject: Subject, tokens: Int[Tensor, "batch pos"], final: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch"]:
    """Return the mean next-token cross-entropy of each sequence, in nats per token."""
    W_U, b_U, softcap = subject.unembed
    hidden, labels = final[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    per_token = chunked_cross_entropy(hidden, W_U, b_U=b_U, softcap=softcap, labels=labels)
    return per_token.view(len(tokens), -1).mean(1)


def load_decoders(folders: Sequence[str], subject: Subject, hooks: Sequence[str], *, force: bool) -> dict[str, Tensor]:
    """Return the decoder directions of saved SAEs, keyed by the hook point at which they write.

    Args:
        force: use SAEs whose metadata name another model or weight processing, too.

    Raises:
        UserError: if an SAE belongs to another model or weight processing than the subject's, is at a hook point that is not compared, has
            another width, or is the second at its hook point.
    """
    decoders: dict[str, Tensor] = {}
    for folder in folders:
        sae, metadata = saelens.load_sae(Path(folder))
        read, hook = saved_hooks(metadata)
        if read is None or hook is None:
            raise UserError(f"{folder}: its metadata do not name the hook point (hook_name), so it cannot be compared")
        if hook not in hooks:
            raise UserError(f"{folder}: an SAE at {hook}; compared are {', '.join(hooks)}")
        place = Place(subject.name, subject.process_weights, read, hook)
        insist = "interaction_basis.compare.force=true"
        check_belonging(metadata, place, what=f"{folder}: the SAE", force=force, insist=insist)
        if hook in decoders:
            raise UserError(f"{folder}: a second SAE at {hook}")
        directions = sae.dictionary()
        width = subject.hook_width(subject.check_hook(hook).kind)
        if directions.shape[1] != width:
            raise UserError(f"{folder}: directions of {directions.shape[1]} dimensions; the subject has {width} there")
        decoders[hook] = directions.detach().double()
    return decoders


EXPERIMENT = Experiment(LanguageBasesJob, result, last_row_of_history)
