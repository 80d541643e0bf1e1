"""Saved SAEs of language models: how much of each dictionary lies outside of what the logits depend on."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.schema import Files, LanguageModel
from crux.degeneracy.basis import Basis
from crux.degeneracy.basis_options import DictionaryOptions
from crux.degeneracy.comparison import logits_basis
from crux.degeneracy.dictionary import DictionaryOutside, measure_outside, strongest_subspace
from crux.degeneracy.grams import moments
from crux.degeneracy.interaction_basis import basis_name, interaction_bases
from crux.degeneracy.packing import pack, unpack
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.sae.architectures.sae import SAE
from crux.sae.formats import saelens
from crux.sae.loading import load_model, load_tokens
from crux.subjects.subject import FINAL, Subject
from crux.text.held_out import spread_batches

PACKAGED = Files(held_out_tokens=sys.maxsize)
"""The packaged text."""

SEQUENCES = 8
"""In a batch."""

THRESHOLD = 1e-9
"""Directions with less than so much of the largest eigenvalue are no part of a basis."""


class Saved(NamedTuple):
    """An SAE and its place."""

    name: str
    sae: SAE
    read: str
    write: str
    metadata: dict[str, Any]

    @property
    def subject(self) -> tuple[str, bool]:
        """Name of its network and whether the weights were processed."""
        return self.metadata["model_name"], bool(self.metadata["process_weights"])


class Found(NamedTuple):
    """What came out for one SAE."""

    basis: Basis
    dimensions: int
    """Of what is read."""
    outside: DictionaryOutside


def read_saes(folders: Sequence[str]) -> list[Saved]:
    """The SAEs of these folders, each by a name of its own: loss and λ, or else the folder.

    Raises:
        UserError: where one is no SAE, or does not say which network and hook point it is of.
    """
    found = []
    for folder in folders:
        sae, metadata = saelens.load_sae(Path(folder))
        missing = [key for key in ("model_name", "hook_name", "process_weights", "context_size") if key not in metadata]
        if missing:
            raise UserError(f"interaction_basis.saes: {folder} does not say its {missing[0]}")
        hook = metadata["hook_name"]
        found.append(
            Saved(metadata.get("loss", Path(folder).name), sae, hook, metadata.get("hook_name_out", hook), metadata)
        )
    names = [saved.name for saved in found]
    return [
        saved if names.count(saved.name) == 1 else saved._replace(name=f"{saved.name} {i}")
        for i, saved in enumerate(found)
    ]


def judge_saved(saes: Sequence[Saved], options: DictionaryOptions, run: ActiveRun) -> dict[str, Found]:
    """Compare each SAE with the global interaction basis at the hook point where it writes, whose Jacobian is that of the logits."""
    found: dict[str, Found] = {}
    for i, (name, processed) in enumerate(dict.fromkeys(saved.subject for saved in saes)):
        of_subject = [saved for saved in saes if saved.subject == (name, processed)]
        context = min(saved.metadata["context_size"] for saved in of_subject)
        model = LanguageModel(name=name, process_weights=processed, context=context)
        subject = load_model(model, device=torch.device("cpu"), dtype=torch.float32)
        text = load_tokens(PACKAGED, model=model, cache=None).held_out
        batches = list(spread_batches(text, context=context, batch=SEQUENCES, n_tokens=options.tokens))
        bases = {
            hook: kept_basis(subject, batches, hook=hook, piece=f"basis_{i}_{hook}", run=run)
            for hook in dict.fromkeys(saved.write for saved in of_subject)
        }
        for saved in of_subject:
            basis = bases[saved.write]
            Q = strongest_subspace(basis, left_out=options.left_out)
            kept = compute_once(
                run.folder, f"outside_{saes.index(saved)}", partial(outside_tensors, saved, subject, batches, Q)
            )
            of = unpack(DictionaryOutside, kept, prefix="", device=subject.device)
            found[saved.name] = Found(basis, Q.shape[1], of)
    return {saved.name: found[saved.name] for saved in saes}


def kept_basis(subject: Subject, batches: Sequence[Tensor], *, hook: str, piece: str, run: ActiveRun) -> Basis:
    """Return the global interaction basis at a hook point; a piece of work."""

    def compute() -> dict[str, Tensor]:
        at = moments(subject, batches, hooks=[FINAL])[FINAL]
        last = logits_basis(FINAL, at, W_U=subject.unembed.W_U, threshold=THRESHOLD)
        basis, _ = interaction_bases(
            subject, batches, hooks=[hook, FINAL], ahead=None, last=last, probes=1, threshold=THRESHOLD, seed=run.seed
        )
        return pack(basis._asdict(), prefix="")

    kept = compute_once(run.folder, piece, compute)
    return unpack(Basis, kept, prefix="", device=subject.device, hook=hook, name=basis_name(None))


def outside_tensors(
    saved: Saved, subject: Subject, batches: Sequence[Tensor], Q: Float[Tensor, "_d k"]
) -> dict[str, Tensor]:
    """Return what of an SAE's dictionary lies outside of what is read, as the tensors of a piece of work."""
    reads, writes = activations(subject, batches, (saved.read, saved.write))
    return pack(measure_outside(saved.sae, reads, writes, Q)._asdict(), prefix="")


@torch.no_grad()
def activations(
    subject: Subject, batches: Sequence[Tensor], hooks: tuple[str, str]
) -> list[Float[Tensor, "_tokens _d"]]:
    """At both hook points, all tokens in a row."""
    kept: list[list[Tensor]] = [[], []]
    for batch in batches:
        found = subject.clean(batch, capture=set(hooks), final=False).activations
        for of, hook in zip(kept, hooks, strict=True):
            of.append(found[hook].flatten(0, 1).float())
    return [torch.cat(of) for of in kept]
