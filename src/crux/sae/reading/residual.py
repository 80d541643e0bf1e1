"""What the residual error of an SAE does to the network's predictions, next to noise of the same length.

The error is e = x̂ − x at the hook point that the SAE writes, so that x + e is the spliced activation. (Some papers use x − x̂.) For a
transcoder, x is the clean activation at the hook point that it *writes*, and e is what it writes minus what the network computes there;
the linear part of e is a function of the activation that it *reads*.

Gurnee (2024) found that the error of an SAE changes the predictions several times as much as an isotropic vector of the same length.
The ratios here are of means over the same tokens, with noise whose norm is that of the error at every single token:

    rho_iso          KL(x + e) / KL(x + isotropic noise)
    rho_error_cov    … / noise with the covariance of the error
    rho_cov          … / noise with the covariance of the activation
    rho_perm         … / the errors of other tokens
    rho_towards      … / a step towards another token's activation
    rho_sign         … / KL(x − e): the error's own directions and lengths, with the opposite sign
    rho_linear, rho_nonlinear      the two parts of the error, each divided by isotropic noise of its own norm
    rho_without_massive            as rho_iso, both without the activation's largest dimension

A ratio of 1 says that the error is no worse than such noise. KL(clean ‖ intervened), in nats. The ratios are of positions ≥ 1; with
`/pos0` they are of position 0. Every token is changed, so that position 0 also has a part in the effects at later positions.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.site import Site
from crux.sae.evaluation.intervention_effects import measure_effects
from crux.sae.evaluation.reconstruction_passes import Reconstructed, iterate_reconstructions
from crux.sae.evaluation.running_sums import MIN_VARIANCE_SHARE
from crux.sae.reading.error_model import ErrorModel, fit_error_model
from crux.sae.reading.error_norm import TokenFacts, predict_error_norm, token_facts
from crux.sae.reading.residual_noise import NOISE_KINDS, draw_normal, match_norms
from crux.sae.reading.residual_report import EffectSums, InterventionRow, Ratio, compare_effects
from crux.sae.splicing import check_site
from crux.subjects.subject import Subject

MIN_DRAWS = 3
"""Least number of draws of each noise: the spread over fewer says nothing."""


class ResidualReport(NamedTuple):
    """The residual error of an SAE on held-out text."""

    rows: tuple[InterventionRow, ...]
    """The effect of each intervention, `clean` first; random ones are averaged over the draws."""
    ratios: dict[str, Ratio]
    """The ratios by the names above; those of position 0 end in `/pos0`."""
    fvu: float | None
    """Σ‖e‖² / Σ‖x − mean‖² at positions ≥ 1: the share of the variance that the SAE leaves; None if x does not vary."""
    linear_r2: float | None
    """Share of the variance of e that the linear part explains, pooled over dimensions, at positions ≥ 1; None if e does not vary."""
    interaction: float
    """KL(x + e) − KL(x + linear part) − KL(x + nonlinear part), in nats, at positions ≥ 1: what the parts do only together."""
    ce_recovered: dict[str, float | None]
    """(CE_sae − CE_S) / (CE_sae − CE_clean), where S is the SAE with the `linear` or the `nonlinear` part of its error removed; None if
    the SAE does not increase the CE. Over all positions that have a next token."""
    norm_r2: dict[str, float | None]
    """R² of predictions of ‖e‖², by predictor (`predict_error_norm`)."""
    massive: int
    """The dimension of the activation with the largest E|x_j|, which `without_massive` leaves out of the error."""
    norm_deviation: float
    """Largest relative difference between the norm of a token's noise and that of its error."""
    n_replaced: int
    """Number of noise vectors that had no direction of their own and are isotropic instead, over all draws."""
    n_fit: int
    """Number of training tokens."""
    n_held_out: int
    """Number of held-out tokens."""
    note: str
    """Why ratios are undefined; empty if none is."""

    def metrics(self) -> dict[str, float]:
        """Return the numbers by name; those that are undefined are left out."""
        numbers: dict[str, float | None] = {name: ratio.value for name, ratio in self.ratios.items()}
        numbers |= {f"kl/{row.name}": row.kl for row in self.rows} | {
            f"kl/{row.name}/pos0": row.kl_pos0 for row in self.rows
        }
        numbers |= {"fvu": self.fvu, "linear_r2": self.linear_r2, "interaction": self.interaction}
        numbers |= {f"ce_recovered/{name}": value for name, value in self.ce_recovered.items()}
        numbers |= {f"norm_r2/{name}": value for name, value in self.norm_r2.items()}
        return {name: value for name, value in numbers.items() if value is not None}


@torch.no_grad()
def measure_residual(
    subject: Subject,
    site: Site,
    *,
    fit: Iterable[Int[Tensor, "_batch _pos"]],
    held_out: Iterable[Int[Tensor, "_batch _pos"]],
    n_draws: int,
    seed: int,
    force: bool = False,
) -> ResidualReport:
    """Measure what the error of an SAE does on held-out documents; covariances and the linear part are fitted on training documents.

    A batch takes one clean pass and 7 + 8 · n_draws spliced passes; memory holds one batch and a few numbers per token of either side.

    Args:
        site: the SAE with its hook points; it is run without gradients, as in `evaluate_sae`.
        fit: batches of training documents; held_out: of documents that have none in common with them. Each is read once.
        n_draws: draws of each noise, at least 3.
        seed: of the draws.
        force: as in `evaluate_sae`.

    Raises:
        UserError: if the SAE does not fit the subject, a side has less than two windows, or `n_draws` is below 3.
    """
    check_site(subject, site, force=force)
    if n_draws < MIN_DRAWS:
        raise UserError(f"n_draws={n_draws}: the spread of noise needs at least {MIN_DRAWS} draws")
    model = fit_error_model(subject, site, fit)
    generator = torch.Generator(subject.device).manual_seed(seed)
    effects, facts, predicted = EffectSums(), [], []
    activation, total, residual, norms = _PooledSums(), _PooledSums(), _PooledSums(), _NoiseNorms()
    n_held_out = 0
    for batch in iterate_reconstructions(subject, site, held_out, description="residual error on the held-out text"):
        n_held_out += batch.tokens.numel()
        linear = model.linear.predict(batch.read)
        for sums, values in ((activation, batch.x), (total, batch.error), (residual, batch.error - linear)):
            sums.add(values)
        effects.add_energies(batch.error, batch.x)
        replacements = _replacements(batch, model, linear, n_draws=n_draws, generator=generator, norms=norms)
        for effect in measure_effects(subject, batch.tokens, batch.clean, hook=site.write, replacements=replacements):
            effects.add(effect)
        facts.append(token_facts(subject, batch))
        predicted.append(model.squared_norm.predict(batch.read[:, 1:-1]).flatten().cpu().numpy())
    compared = compare_effects(effects, n_draws=n_draws)
    row = {row.name: row for row in compared.rows}
    norm_r2 = predict_error_norm(model.facts, TokenFacts.join(facts), from_activation=np.concatenate(predicted))
    return ResidualReport(
        rows=compared.rows,
        ratios=compared.ratios,
        fvu=total.relative_to(activation),
        linear_r2=None if (left := residual.relative_to(total)) is None else 1 - left,
        interaction=row["sae"].kl - row["linear"].kl - row["nonlinear"].kl,
        ce_recovered=compared.ce_recovered,
        norm_r2=norm_r2,
        massive=model.massive,
        norm_deviation=norms.deviation,
        n_replaced=norms.n_replaced,
        n_fit=model.n_tokens,
        n_held_out=n_held_out,
        note=compared.note,
    )


class _NoiseNorms:
    """What is checked about every noise that has the norm of the error."""

    deviation = 0.0
    n_replaced = 0

    def check(self, noise: Float[Tensor, "batch pos d"], like: Float[Tensor, "batch pos d"]) -> None:
        wanted, actual = like.norm(dim=-1), noise.norm(dim=-1)
        relative = (actual - wanted).abs() / wanted.clamp_min(torch.finfo(wanted.dtype).tiny)
        self.deviation = max(self.deviation, float(relative.max()))


class _PooledSums:
    """Sums for the variance about the mean at positions ≥ 1, pooled over dimensions, in float64."""

    def __init__(self) -> None:
        self.n, self.squares = 0, 0.0
        self.sum: Tensor | float = 0.0

    def add(self, values: Float[Tensor, "batch pos d"]) -> None:
        rest = values[:, 1:].flatten(0, 1).cpu().double()
        self.n += len(rest)
        self.squares += float(rest.square().sum())
        self.sum = self.sum + rest.sum(0)

    def relative_to(self, other: "_PooledSums") -> float | None:
        """Return Σ‖v‖² / Σ‖w − mean‖² for the w of another sum; None if these do not vary."""
        assert isinstance(other.sum, Tensor)
        variance = other.squares - float(other.sum.square().sum()) / other.n
        return None if variance <= MIN_VARIANCE_SHARE * other.squares else self.squares / variance


def _replacements(
    batch: Reconstructed,
    model: ErrorModel,
    linear: Float[Tensor, "batch pos d"],
    *,
    n_draws: int,
    generator: torch.Generator,
    norms: _NoiseNorms,
) -> Iterator[tuple[str, Float[Tensor, "batch pos d"]]]:
    """Yield what replaces the activation, by the name of the intervention; the number of a draw follows the name after a `#`."""
    x, x_hat, error = batch.x, batch.x_hat, batch.error
    yield "clean", x
    yield "sae", x_hat
    yield "sign_flipped", x - error
    lengths = x_hat.norm(dim=-1, keepdim=True)
    # a reconstruction of zero has no length to correct
    factor = torch.where(lengths > 0, x.norm(dim=-1, keepdim=True) / lengths.clamp_min(1e-30), 1.0)
    yield "norm_corrected", x_hat * factor
    for kind in NOISE_KINDS:
        for draw in range(n_draws):
            noise = model.noise.draw(kind, x=x, error=error, generator=generator)
            norms.check(noise.values, error)
            norms.n_replaced += noise.n_replaced
            yield f"{kind}#{draw}", x + noise.values
    without_massive = error.clone()
    without_massive[..., model.massive] = 0
    for name, part in (("linear", linear), ("nonlinear", error - linear), ("without_massive", without_massive)):
        yield name, x + part
        for draw in range(n_draws):
            directions = draw_normal(part, generator=generator)
            if name == "without_massive":
                directions[..., model.massive] = 0
            yield f"isotropic_{name}#{draw}", x + match_norms(directions, part.norm(dim=-1), generator=generator).values
