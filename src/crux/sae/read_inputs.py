"""The subject, the text and the SAEs of a job about saved SAEs, loaded as its options say."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from crux.config.errors import UserError
from crux.sae.architectures.site import Site
from crux.sae.belonging import saved_hooks
from crux.sae.formats import saelens
from crux.sae.loading import check_embedding, load_model, load_tokens
from crux.sae.options import model_source
from crux.sae.read_checks import find_sae_folder
from crux.sae.read_options import SavedSaeJob
from crux.sae.reading.harvest import Harvest, harvest_codes
from crux.subjects.subject import Subject
from crux.subjects.tokenizer import load_tokenizer
from crux.text.token_file import default_cache
from crux.text.tokens import Tokens
from crux.training.devices import choose_device


class ReadInputs(NamedTuple):
    """The subject and the text of a job about saved SAEs."""

    job: SavedSaeJob
    subject: Subject
    tokens: Tokens
    tokenizer: Tokenizer
    end_of_text: int
    """Id of the token between two texts."""

    def load_site(self, path: str, *, key: str) -> Site:
        """Load an SAE from a run folder or from its own folder, at the hook points in its metadata or at that of the job.

        Args:
            key: the key on the command line, for messages.

        Raises:
            UserError: if the folder holds no SAE, or nothing says which hook point it reads.
        """
        return load_site(path, key=key, hook_point=self.job.hook_point, device=self.subject.device)

    def harvest(
        self, site: Site, *, n_fit: int, n_held_out: int, force: bool, with_activations: bool = True
    ) -> Harvest:
        """Return the codes of an SAE on training and on held-out text, from the cache if they are there; arguments as `harvest_codes`."""
        return harvest_codes(
            self.subject, site, train=self.tokens.train, held_out=self.tokens.held_out, context=self.job.model.context, n_fit=n_fit,
            n_held_out=n_held_out, end_of_text=self.end_of_text, batch=self.job.batch, with_activations=with_activations,
            cache=default_cache() if self.job.cache is None else Path(self.job.cache), force=force,
        )  # fmt: skip


def load_inputs(job: SavedSaeJob) -> ReadInputs:
    """Load the subject and the text that a job describes, and seed torch.

    Raises:
        UserError: if either cannot be loaded, or the text has tokens that the subject has no embedding for.
    """
    torch.manual_seed(job.seed)
    tokens = load_tokens(job.data, model=job.model, cache=job.cache)
    subject = load_model(job.model, device=choose_device(job.trainer.accelerator), dtype=torch.float32)
    check_embedding(tokens, subject)
    return ReadInputs(job, subject, tokens, *load_tokenizer(model_source(job.model)))


def load_site(path: str, *, key: str, hook_point: str | None, device: torch.device) -> Site:
    """Load an SAE from a run folder or from its own folder, with the hook points in its metadata.

    Args:
        key: the key on the command line, for messages.
        hook_point: the hook point that it reads; None: the one in its metadata.
    """
    folder = find_sae_folder(Path(path), key=key)
    sae, metadata = saelens.load_sae(folder)
    read, write = saved_hooks(metadata)
    if (hook := hook_point or read) is None:
        raise UserError(f"{key}={path}: its metadata do not say which hook point the SAE reads; give hook_point=")
    folded = sae.fold()
    folded.metadata = sae.metadata
    written = hook if write is None or write == read else write
    return Site(hook, written, folded.to(device))


def name_saes(paths: Sequence[str]) -> list[str]:
    """Return short names of two or more SAEs: the parts of their paths in which they differ, without the time of a run if it is not needed.

    Equal paths have equal names, with a number from the second on.
    """
    parts = [Path(path).expanduser().resolve().parts for path in paths]
    first, last = _count_common(parts), _count_common([folder[::-1] for folder in parts])
    names = ["/".join(folder[first : len(folder) - last] or folder[-1:]) for folder in parts]
    without_time = [re.sub(r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_", "", name) for name in names]
    names = without_time if len(set(without_time)) == len(names) else names
    return [name if name not in names[:i] else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _count_common(sequences: Sequence[tuple[str, ...]]) -> int:
    """Return how many items at the beginning all sequences have in common."""
    return len(list(takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False))))
