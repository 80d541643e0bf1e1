"""Evaluation of saved SAEs of language models: how much of each dictionary lies outside the subspace that the logits depend on."""

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
from crux.sae.architectures.site import Site
from crux.sae.belonging import saved_hooks
from crux.sae.formats import saelens
from crux.sae.loading import load_model, load_tokens
from crux.sae.splicing import check_site
from crux.subjects.subject import FINAL, Subject
from crux.text.held_out import spread_batches

PACKAGED_TEXT = Files(held_out_tokens=sys.maxsize)
"""The packaged text, all of it as held-out text."""

SEQUENCES_PER_BATCH = 8

MIN_RELATIVE_EIGENVALUE = 1e-9
"""Directions below this share of the largest eigenvalue are left out of a basis."""


REQUIRED = ("model_name", "hook_name", "process_weights", "context_size")
"""Keys of the metadata by which the network of a saved SAE is found."""


class SavedSAE(NamedTuple):
    """A saved SAE with its hook points and metadata."""

    name: str
    sae: SAE
    read: str
    """The hook point whose activation the SAE encodes."""
    write: str
    """The hook point whose activation it reconstructs: the same, except for a transcoder."""
    metadata: dict[str, Any]

    @property
    def subject(self) -> tuple[str, bool]:
        """Name of the subject, and whether its weights were processed."""
        return self.metadata["model_name"], bool(self.metadata["process_weights"])


class SavedSAEResult(NamedTuple):
    """The result for one SAE."""

    basis: Basis
    dimensions: int
    """Dimensions of the subspace that is read."""
    outside: DictionaryOutside


def load_saved_saes(folders: Sequence[str]) -> list[SavedSAE]:
    """Load SAEs, each with a unique name: its loss, or else its folder, with a number if the name is not unique.

    Raises:
        UserError: if a folder is not an SAE, or its metadata lack the network or the hook point.
    """
    saes = []
    for folder in folders:
        sae, metadata = saelens.load_sae(Path(folder))
        missing = [key for key in REQUIRED if metadata.get(key) is None]
        read, write = saved_hooks(metadata)
        if missing or read is None or write is None:
            raise UserError(f"interaction_basis.saes: {folder} does not say its {missing[0]}")
        saes.append(SavedSAE(metadata.get("loss") or Path(folder).name, sae, read, write, metadata))
    names = [saved.name for saved in saes]
    return [
        saved if names.count(saved.name) == 1 else saved._replace(name=f"{saved.name} {i}")
        for i, saved in enumerate(saes)
    ]


def evaluate_saved_saes(
    saes: Sequence[SavedSAE], options: DictionaryOptions, run: ActiveRun
) -> dict[str, SavedSAEResult]:
    """Compare each SAE with the global interaction basis at its write hook point, whose Jacobian is that of the logits."""
    results: dict[str, SavedSAEResult] = {}
    for i, (name, processed) in enumerate(dict.fromkeys(saved.subject for saved in saes)):
        same_subject = [saved for saved in saes if saved.subject == (name, processed)]
        context = min(saved.metadata["context_size"] for saved in same_subject)
        model = LanguageModel(name=name, process_weights=processed, context=context)
        subject = load_model(model, device=torch.device("cpu"), dtype=torch.float32)
        for saved in same_subject:
            check_site(subject, Site(saved.read, saved.write, saved.sae))
        text = load_tokens(PACKAGED_TEXT, model=model, cache=None).held_out
        batches = list(spread_batches(text, context=context, batch=SEQUENCES_PER_BATCH, n_tokens=options.tokens))
        bases = {
            hook: find_global_basis(subject, batches, hook=hook, piece=f"basis_{i}_{hook}", run=run)
            for hook in dict.fromkeys(saved.write for saved in same_subject)
        }
        for saved in same_subject:
            basis = bases[saved.write]
            Q = strongest_subspace(basis, left_out=options.left_out)
            tensors = compute_once(
                run.folder,
                f"outside_{saes.index(saved)}",
                partial(measure_outside_as_tensors, saved, subject, batches, Q),
            )
            outside = unpack(DictionaryOutside, tensors, prefix="", device=subject.device)
            results[saved.name] = SavedSAEResult(basis, Q.shape[1], outside)
    return {saved.name: results[saved.name] for saved in saes}


def find_global_basis(subject: Subject, batches: Sequence[Tensor], *, hook: str, piece: str, run: ActiveRun) -> Basis:
    """Return the global interaction basis at a hook point; computed once per run."""

    def compute() -> dict[str, Tensor]:
        final_moments = moments(subject, batches, hooks=[FINAL])[FINAL]
        last = logits_basis(FINAL, final_moments, W_U=subject.unembed.W_U, threshold=MIN_RELATIVE_EIGENVALUE)
        basis, _ = interaction_bases(
            subject,
            batches,
            hooks=[hook, FINAL],
            ahead=None,
            last=last,
            probes=1,
            threshold=MIN_RELATIVE_EIGENVALUE,
            seed=run.seed,
        )
        return pack(basis._asdict(), prefix="")

    tensors = compute_once(run.folder, piece, compute)
    return unpack(Basis, tensors, prefix="", device=subject.device, hook=hook, name=basis_name(None))


def measure_outside_as_tensors(
    saved: SavedSAE, subject: Subject, batches: Sequence[Tensor], Q: Float[Tensor, "_d k"]
) -> dict[str, Tensor]:
    """Measure how much of an SAE's dictionary lies outside the subspace Q, and return the result as tensors to save."""
    reads, writes = collect_activations(subject, batches, (saved.read, saved.write))
    return pack(measure_outside(saved.sae, reads, writes, Q)._asdict(), prefix="")


@torch.no_grad()
def collect_activations(
    subject: Subject, batches: Sequence[Tensor], hooks: tuple[str, str]
) -> list[Float[Tensor, "_tokens _d"]]:
    """Return the activations of all tokens at each of two hook points, which may be the same."""
    by_hook: list[list[Tensor]] = [[], []]
    for batch in batches:
        activations = subject.clean(batch, capture=set(hooks), final=False).activations
        for batches_at_hook, hook in zip(by_hook, hooks, strict=True):
            batches_at_hook.append(activations[hook].flatten(0, 1).float())
    return [torch.cat(batches_at_hook) for batches_at_hook in by_hook]
