"""Clean passes with the reconstruction of an SAE and its error, batch by batch."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.sae.architectures.site import Site
from crux.subjects.subject import Clean, Subject


class Reconstructed(NamedTuple):
    """A clean pass of one batch with what an SAE makes of it; everything is in float32."""

    tokens: Int[Tensor, "batch pos"]
    """The token ids, on the subject's device."""
    clean: Clean
    read: Float[Tensor, "batch pos d_model"]
    """The activation that the SAE reads."""
    x: Float[Tensor, "batch pos d_out"]
    """The clean activation at the hook point that the SAE writes; the same as `read`, except for a transcoder."""
    x_hat: Float[Tensor, "batch pos d_out"]
    """What the SAE writes."""
    codes: Float[Tensor, "tokens n_latents"]
    """The codes; batch and positions are flattened."""

    @property
    def error(self) -> Float[Tensor, "batch pos d_out"]:
        """The error e = x̂ − x, so that x + e is the spliced activation."""
        return self.x_hat - self.x


@torch.no_grad()
def reconstruct(subject: Subject, site: Site, tokens: Int[Tensor, "batch pos"], *, final: bool = True) -> Reconstructed:
    """Run a clean pass and the SAE; without `final` the network is not computed beyond the hook points."""
    tokens = tokens.to(subject.device)
    return reconstruct_clean(site, tokens, subject.clean(tokens, capture={site.read, site.write}, final=final))


@torch.no_grad()
def reconstruct_clean(site: Site, tokens: Int[Tensor, "batch pos"], clean: Clean) -> Reconstructed:
    """Run the SAE on a clean pass that has captured its hook points."""
    read, x = (clean.activations[hook].float() for hook in (site.read, site.write))
    codes = site.sae.encode(read.flatten(0, 1))
    return Reconstructed(tokens, clean, read, x, site.sae.decode(codes).view(x.shape), codes.c)


def iterate_reconstructions(
    subject: Subject, site: Site, batches: Iterable[Int[Tensor, "_batch _pos"]], *, description: str, final: bool = True
) -> Iterator[Reconstructed]:
    """Yield the reconstruction of each batch, with progress; see `join_single_windows` for the batches and errors."""
    for tokens in track(join_single_windows(batches), description):
        yield reconstruct(subject, site, tokens, final=final)


def join_single_windows(batches: Iterable[Int[Tensor, "_batch _pos"]]) -> Iterator[Int[Tensor, "_batch _pos"]]:
    """Yield batches of at least two windows, joining a batch of one window to the one before it or after it.

    Permutations of tokens among windows need two of them.

    Raises:
        UserError: if there are less than two windows, or a window has less than two tokens.
    """
    held = None
    for tokens in batches:
        if tokens.shape[1] < 2:
            raise UserError("a window of the text has 1 token; at least 2 are needed")
        if held is None or len(tokens) < 2 or len(held) < 2:
            held = tokens if held is None else torch.cat([held, tokens])
        else:
            yield held
            held = tokens
    if held is None or len(held) < 2:
        raise UserError("the text has less than two windows; the errors of different tokens cannot be compared")
    yield held
