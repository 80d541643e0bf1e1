"""The codes of an SAE on some windows, kept in memory: for the page of a run that has just been trained, which needs no cache."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from crux.config.progress import track
from crux.sae.architectures.site import Site
from crux.sae.reading.harvest import ReadText, find_text_begins
from crux.sae.reading.sparse_codes import stack_batches
from crux.sae.splicing import check_site
from crux.subjects.subject import Subject

MAX_CODES = 1 << 26
"""Number of codes that are kept at most: 512 MB."""


@torch.no_grad()
def read_batches(
    subject: Subject,
    site: Site,
    batches: Iterable[Int[Tensor, "_batch _pos"]],
    *,
    end_of_text: int | None = None,
    max_codes: int = MAX_CODES,
    force: bool = False,
) -> ReadText:
    """Return the codes of an SAE on batches of windows, without activations.

    Each batch takes one pass through the network's prefix. If an SAE has so many codes that they would not fit into memory, the last
    batches are left out: the batches should be spread over the text in any order.

    Args:
        site: the SAE, folded.
        end_of_text: id of the token between two texts; None if there is none.
        max_codes: number of codes after which no further batch is read.
        force: as in `evaluate_sae`.

    Raises:
        UserError: if the SAE does not fit the subject.
    """
    check_site(subject, site, force=force)
    windows, parts, n_codes = [], [], 0
    for tokens in track(batches, "reading what activates the latents"):
        if n_codes >= max_codes:
            break
        x = subject.clean(tokens.to(subject.device), capture=[site.read], final=False).activations[site.read]
        parts.append(site.sae.encode_active(x.flatten(0, 1).float()))
        windows.append(tokens.cpu().numpy())
        n_codes += len(parts[-1].values)
    joint = np.concatenate(windows).astype(np.int64)
    codes = stack_batches(parts, n_latents=site.sae.n_latents)
    return ReadText(joint, find_text_begins(joint, end_of_text), codes, None)
