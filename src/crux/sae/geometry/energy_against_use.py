"""Where the energy of activations, reconstructions, errors and dictionaries lies, and where the network reads."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.evaluation.ratio_of_sums import RatioOfSums, ratio_of_sums
from crux.sae.evaluation.reconstruction_passes import join_single_windows, reconstruct_clean
from crux.sae.evaluation.token_moments import TokenMoments
from crux.sae.geometry.fisher_directions import Fisher, draw_gradients, top_eigenvectors
from crux.sae.splicing import check_site
from crux.subjects.subject import Subject


class EnergyAgainstUse(NamedTuple):
    """Shares of energy in the directions with the most Fisher information and with the most variance, at positions ≥ 1.

    The rows are `x` and `x_hat` (each about its mean), `error` (e = x̂ − x, about zero), `dictionary` (Σ_i E[c_i²] w_i w_iᵀ, as if the
    latents were independent), `gradient` (of drawn labels on the held-out text: what the network reads) and `isotropic` (chance: k/d).
    """

    ks: tuple[int, ...]
    """Numbers of directions, ascending."""
    in_fisher: dict[str, tuple[float, ...]]
    """By row: the share of its energy in the top-k eigenvectors of F̄ on the training text, for each k."""
    in_variance: dict[str, tuple[float, ...]]
    """The same in the top-k principal components of x on the training text."""
    use: dict[str, float]
    """By row: tr(F̄ M) / (tr M · tr F̄ / d), with M its second moment; 1 for isotropic vectors. For `error`, the A_e of the brief."""
    error_use: RatioOfSums | None
    """The `use` of the error with its standard error over windows, F̄ taken as exact; None if there is no error."""
    error_use_own_token: RatioOfSums | None
    """d Σ (g_t · e_t)² / Σ ‖g_t‖² ‖e_t‖²: each error with the gradients of its own token; above 1 if it falls where that token is read."""
    kl_second_order: float
    """½ E[(g_t · e_t)²]: what the errors would cost in nats per token if their effects were small and independent."""
    kl_second_order_isotropic: float
    """½ E[‖g_t‖² ‖e_t‖²] / d: the same for isotropic noise with the norm of each token's error."""
    fisher: Fisher
    """F̄ on the training text."""
    n_held_out: int
    """Number of held-out tokens at positions ≥ 1."""


@torch.no_grad()
def measure_energy_against_use(
    subject: Subject,
    site: Site,
    *,
    fit: Iterable[Int[Tensor, "_batch _pos"]],
    held_out: Iterable[Int[Tensor, "_batch _pos"]],
    ks: Sequence[int],
    n_draws: int,
    seed: int,
    force: bool = False,
) -> EnergyAgainstUse:
    """Compare the energy of x, x̂, e and the dictionary with the Fisher information, at the hook point that the SAE writes.

    Eigenvectors are fitted on training documents, so that their shares on held-out documents are not those of their own noise.

    Args:
        ks: numbers of directions; those above the activation's width are left out.
        n_draws: draws of the labels of each token.
        seed: of the drawn labels.
        force: as in `evaluate_sae`.

    Raises:
        UserError: if the SAE does not fit the subject, `ks` or `n_draws` is below 1, or a side has less than two windows.
    """
    check_site(subject, site, force=force)
    d, sae = site.sae.d_out, site.sae
    ks = tuple(sorted(k for k in set(ks) if k <= d))
    if not ks or ks[0] < 1 or n_draws < 1:
        raise UserError(f"ks={list(ks)}, n_draws={n_draws}: both must be at least 1, and one k at most the width {d}")
    generator = torch.Generator(subject.device).manual_seed(seed)
    variance, gradients = TokenMoments(), TokenMoments()
    for tokens in track(join_single_windows(fit), "directions that the network reads"):
        drawn = draw_gradients(
            subject, tokens.to(subject.device), hook=site.write, n_draws=n_draws, generator=generator
        )
        for draw, (clean, gradient) in enumerate(drawn):
            gradients.add(gradient[:, 1:].flatten(0, 1))
            if draw == 0:
                variance.add(clean.activations[site.write][:, 1:].flatten(0, 1).float())
    fisher = Fisher(gradients.second_moment.cpu(), variance.n, n_draws)

    sums = _HeldOutSums(sae, fisher)
    for tokens in track(join_single_windows(held_out), "energy of the error on the held-out text"):
        tokens = tokens.to(subject.device)
        drawn = draw_gradients(
            subject, tokens, hook=site.write, n_draws=n_draws, generator=generator, capture=[site.read]
        )
        error = None
        for clean, gradient in drawn:
            if error is None:
                batch = reconstruct_clean(site, tokens, clean)
                error = batch.error[:, 1:]
                codes = batch.codes.view(*tokens.shape, -1)[:, 1:].flatten(0, 1)
                sums.add(batch.x[:, 1:], batch.x_hat[:, 1:], error, codes)
            sums.add_gradient(gradient[:, 1:], error)
    moments = sums.second_moments()
    bases = [top_eigenvectors(matrix) for matrix in (fisher.matrix, variance.covariance)]
    in_fisher, in_variance = ({name: energy_shares(m, basis, ks) for name, m in moments.items()} for basis in bases)
    use = {name: fisher.use_per_energy(moment) for name, moment in moments.items()}
    return EnergyAgainstUse(
        ks, in_fisher, in_variance,
        use={name: value for name, value in use.items() if value is not None},
        error_use=sums.error_use(),
        error_use_own_token=sums.error_use_own_token(),
        kl_second_order=0.5 * sums.mean_of("own"),
        kl_second_order_isotropic=0.5 * sums.mean_of("product") / d,
        fisher=fisher,
        n_held_out=sums.moments["x"].n,
    )  # fmt: skip


def energy_shares(
    second_moment: Float[Tensor, "d d"], basis: Float[Tensor, "d d"], ks: Sequence[int]
) -> tuple[float, ...]:
    """Return tr(B_kᵀ M B_k) / tr M for the first k columns of an orthonormal basis; NaN if there is no energy."""
    along = ((basis.T @ second_moment.cpu().double()) * basis.T).sum(1)
    total = float(second_moment.trace())
    return tuple(float(along[:k].sum()) / total if total > 0 else float("nan") for k in ks)


class _HeldOutSums:
    """Second moments and per-window sums on the held-out text, at positions ≥ 1."""

    def __init__(self, sae: SAE, fisher: Fisher) -> None:
        self.moments: Mapping[str, TokenMoments] = {
            name: TokenMoments() for name in ("x", "x_hat", "error", "gradient")
        }
        self._sae, self._fisher = sae, fisher
        self._squared_codes = torch.zeros(sae.n_latents, dtype=torch.float64)
        self._windows: dict[str, list[np.ndarray]] = {name: [] for name in ("used", "energy", "own", "product")}
        self._n_draws = 0

    def add(
        self,
        x: Float[Tensor, "batch pos d"],
        x_hat: Float[Tensor, "batch pos d"],
        error: Float[Tensor, "batch pos d"],
        codes: Float[Tensor, "tokens n_latents"],
    ) -> None:
        for name, values in (("x", x), ("x_hat", x_hat), ("error", error)):
            self.moments[name].add(values.flatten(0, 1))
        self._squared_codes += codes.square().sum(0).cpu().double()
        double = error.cpu().double()
        self._append("used", ((double @ self._fisher.matrix) * double).sum(-1))
        self._append("energy", double.square().sum(-1))

    def add_gradient(self, gradient: Float[Tensor, "batch pos d"], error: Float[Tensor, "batch pos d"]) -> None:
        self.moments["gradient"].add(gradient.flatten(0, 1))
        self._append("own", (gradient * error).sum(-1).square())
        self._append("product", gradient.square().sum(-1) * error.square().sum(-1))

    def _append(self, name: str, by_token: Float[Tensor, "batch pos"]) -> None:
        self._windows[name].append(by_token.cpu().double().sum(1).numpy())

    def by_window(self, name: str) -> Float[np.ndarray, "windows"]:
        return np.concatenate(self._windows[name])

    def mean_of(self, name: str) -> float:
        """Return the mean over tokens and draws of a quantity of the gradients."""
        return float(self.by_window(name).sum()) / self.moments["gradient"].n

    def second_moments(self) -> dict[str, Float[Tensor, "d d"]]:
        dictionary = (self._sae.dictionary() / self._sae.output_scale).cpu().double()
        squared = self._squared_codes / self.moments["x"].n
        return {
            "x": self.moments["x"].covariance.cpu(),
            "x_hat": self.moments["x_hat"].covariance.cpu(),
            "error": self.moments["error"].second_moment.cpu(),
            "dictionary": dictionary.T @ (squared[:, None] * dictionary),
            "gradient": self.moments["gradient"].second_moment.cpu(),
            "isotropic": torch.eye(self._sae.d_out, dtype=torch.float64),
        }

    def error_use(self) -> RatioOfSums | None:
        trace = self._fisher.trace / self._sae.d_out
        return ratio_of_sums(self.by_window("used"), self.by_window("energy") * trace)

    def error_use_own_token(self) -> RatioOfSums | None:
        return ratio_of_sums(self.by_window("own") * self._sae.d_out, self.by_window("product"))
