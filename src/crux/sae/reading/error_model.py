"""What is learnt about an SAE's error on training documents, before it is taken apart on held-out documents."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from crux.sae.architectures.site import Site
from crux.sae.evaluation.reconstruction_passes import iterate_reconstructions
from crux.sae.evaluation.token_moments import TokenMoments
from crux.sae.reading.error_norm import TokenFacts, token_facts
from crux.sae.reading.linear_error import LinearErrorPart, LinearMap, fit_linear_map
from crux.sae.reading.residual_noise import ErrorNoise
from crux.subjects.subject import Subject


class ErrorModel(NamedTuple):
    """The statistics of an SAE's error on training documents."""

    noise: ErrorNoise
    """Draws noise with the covariances of the error and of the activation."""
    linear: LinearErrorPart
    """The part of the error that is linear in the activation that the SAE reads."""
    squared_norm: LinearMap
    """‖e‖² as a linear function of that activation, over positions ≥ 1."""
    facts: TokenFacts
    """The norms of the errors, and what may predict them."""
    massive: int
    """The dimension of the activation with the largest E|x_j| over positions ≥ 1."""
    n_tokens: int
    """Number of tokens, position 0 included."""


@torch.no_grad()
def fit_error_model(subject: Subject, site: Site, batches: Iterable[Int[Tensor, "_batch _pos"]]) -> ErrorModel:
    """Return the statistics of the error e = x̂ − x on a training text.

    The text is read once. Memory is O(d²) and 20 bytes a token.

    Raises:
        UserError: if the text has less than two windows, or windows of less than two tokens.
    """
    d_in, d = site.sae.d_model, site.sae.d_out
    joint, written, first = TokenMoments(), TokenMoments(), TokenMoments()
    sizes = torch.zeros(d, dtype=torch.float64)
    facts, n_tokens = [], 0
    for batch in iterate_reconstructions(subject, site, batches, description="error on the training text"):
        n_tokens += batch.tokens.numel()
        error, read, x = batch.error, batch.read[:, 1:].flatten(0, 1), batch.x[:, 1:].flatten(0, 1)
        rest = error[:, 1:].flatten(0, 1)
        joint.add(torch.cat([read, rest, rest.square().sum(-1, keepdim=True)], dim=-1))
        written.add(x)
        first.add(error[:, 0])
        sizes += x.abs().cpu().double().sum(0)
        facts.append(token_facts(subject, batch))
    covariance, mean = joint.covariance, joint.mean
    noise = ErrorNoise.from_moments(covariance[d_in : d_in + d, d_in : d_in + d], written.covariance, subject.device)
    linear = LinearErrorPart(
        fit_linear_map(covariance, mean, d_in=d_in, targets=slice(d_in, d_in + d)), first.mean.float()
    )
    squared_norm = fit_linear_map(covariance, mean, d_in=d_in, targets=slice(d_in + d, d_in + d + 1))
    return ErrorModel(noise, linear, squared_norm, TokenFacts.join(facts), int(sizes.argmax()), n_tokens)
