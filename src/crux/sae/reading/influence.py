"""The influence of every latent on the network's predictions, from a few gradients of sampled labels.

To second order, ablating latent i (x' = x − c_i w_i wherever it fires, the SAE's error kept) changes the predictions by

    I_i = ½ E_r Σ_t (g_t^r · w_i)² c_i(t)² / n_tokens        nats per token of text, of KL(clean ‖ ablated)

with g_t^r = ∂(Σ_s −log p_s(y_s))/∂x_t and labels y_s drawn from the network's predictions (draw r). E_r[g gᵀ] is the Fisher information
of the predictions at all positions s ≥ t, so that effects on later tokens are included. Labels at different positions are drawn
independently; the sum over t leaves out the interaction between ablations at two tokens. Only pairs of a token and a latent that
fires on it are computed. `crux.sae.reading.ablations` checks the estimate against exact ablations.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import progress
from crux.sae.label_gradients import clean_with_label_gradients
from crux.sae.losses.label import LabelTarget
from crux.sae.reading.sparse_codes import SparseCodes
from crux.subjects.subject import Subject

PAIRS = 2**16
"""Number of pairs of a token and a latent whose vectors are in memory at once."""


class Influence(NamedTuple):
    """What the network does with each latent, to second order, averaged over the tokens of a text."""

    kl: Float[np.ndarray, "n_latents"]
    """I_i: estimated KL(clean ‖ ablated) in nats per token of text, on all later tokens together; 0 for a latent that does not fire."""
    kl_pos0: Float[np.ndarray, "n_latents"]
    """The part of `kl` that comes from firings at position 0."""
    kl_halves: Float[np.ndarray, "2 n_latents"]
    """`kl` from the first and from the second half of the draws."""
    ce_first_order: Float[np.ndarray, "n_latents"]
    """First-order change of the CE by ablation, −Σ_t c_i(t) w_i·∇_{x_t} CE, in nats per predicted token; positive: ablation is harmful."""
    energy: Float[np.ndarray, "n_latents"]
    """‖w_i‖² E[c_i²] over all tokens, in squared units of the activation."""
    firings: Int[np.ndarray, "n_latents"]
    """Number of tokens on which each latent fires."""
    fisher: Float[np.ndarray, "d d"]
    """F̄ = E_r[g gᵀ] averaged over tokens: ½ α² w̄ᵀF̄w̄ is the KL, summed over all later tokens, of adding α w̄ at one token."""
    directions: Float[np.ndarray, "n_latents d"]
    """The w_i."""
    n_tokens: int
    n_draws: int

    @property
    def densities(self) -> Float[np.ndarray, "n_latents"]:
        """The share of tokens on which each latent fires."""
        return self.firings / self.n_tokens

    @property
    def strength(self) -> Float[np.ndarray, "n_latents"]:
        """`kl` per firing, in nats; NaN for a latent that does not fire."""
        return _divide(self.kl, self.densities)

    @property
    def ce_increase(self) -> Float[np.ndarray, "n_latents"]:
        """Estimated CE(ablated) − CE(clean) in nats per token: the first-order change, plus `kl`.

        The first-order change alone has mean 0 if the predictions are calibrated. The second-order one is that of the KL if, on average
        over the text, the Hessian of the CE is the Fisher information.
        """
        return self.ce_first_order + self.kl

    @property
    def use_per_energy(self) -> Float[np.ndarray, "n_latents"]:
        """U_i = I_i / (½ ‖w_i‖² E[c_i²] tr F̄ / d): 1 for an isotropic direction of the same length; NaN if it never fires."""
        return _divide(self.kl, 0.5 * self.energy * np.trace(self.fisher) / len(self.fisher))

    @property
    def direction_fisher(self) -> Float[np.ndarray, "n_latents"]:
        """w̄_iᵀ F̄ w̄_i of the unit directions; its mean over isotropic directions is tr F̄ / d."""
        squares = np.einsum("id,de,ie->i", self.directions, self.fisher, self.directions, optimize=True)
        return _divide(squares, (self.directions**2).sum(1))

    @property
    def halves_spearman(self) -> float:
        """Rank correlation of the two halves of the draws over the latents that fire; NaN if less than three fire."""
        fires = self.firings > 0
        return float(np.asarray(spearmanr(*self.kl_halves[:, fires]))[0]) if fires.sum() > 2 else float("nan")

    def select(self, latents: slice | Int[np.ndarray, "n"]) -> "Influence":
        """Return the influence of some latents."""
        return self._replace(
            kl=self.kl[latents], kl_pos0=self.kl_pos0[latents], kl_halves=self.kl_halves[:, latents],
            ce_first_order=self.ce_first_order[latents], energy=self.energy[latents], firings=self.firings[latents],
            directions=self.directions[latents],
        )  # fmt: skip

    def dead_weight_share(self, *, below: float = 0.5) -> float:
        """Return the share of the energy of all latents that lies in latents with U_i < `below`: energy that the network hardly reads."""
        unused = np.nan_to_num(self.use_per_energy, nan=np.inf) < below
        total = self.energy.sum()
        return float(self.energy[unused].sum() / total) if total > 0 else float("nan")


class Firings(NamedTuple):
    """The codes of a batch of windows, as pairs of a token and a latent that fires on it."""

    tokens: Int[Tensor, "pairs"]
    """Index of the token in the batch, window by window."""
    latents: Int[Tensor, "pairs"]
    values: Float[Tensor, "pairs"]


def measure_influence(
    subject: Subject,
    windows: Int[np.ndarray, "windows context"],
    codes: SparseCodes,
    *,
    hook: str,
    directions: Float[Tensor, "n_latents d"],
    n_draws: int,
    batch: int,
    seed: int,
) -> Influence:
    """Estimate the influence of every latent from `n_draws` sampled-label gradients, and its first-order effect on the CE from one more.

    It takes `n_draws` + 1 clean passes with a backward pass to `hook` each, and no pass per latent.

    Args:
        windows: token ids; codes: of the same tokens, in the same order, for example some windows of a `ReadText` (`select_windows`).
            They may be those of control directions, with codes of matched density, or those of several dictionaries (`join_codes`), whose
            influences then come from the same gradients (`Influence.select`).
        hook: hook point that the latents write.
        directions: w_i, the decoder rows, on the scale of the activations; of any norm.
        n_draws: an even number of at least 2.
        batch: windows per pass.
        seed: of the drawn labels.

    Raises:
        UserError: if the codes do not have as many tokens as the windows, or as many latents as there are directions, or `n_draws` is odd.
    """
    if n_draws < 2 or n_draws % 2:
        raise UserError(f"the influence is estimated from an even number of draws of at least 2, not {n_draws}")
    check_codes(windows, codes, directions)
    n, d = directions.shape
    w = directions.detach().to(subject.device, torch.float32)
    generator = torch.Generator(subject.device).manual_seed(seed)
    halves, pos0, first_order, squares = np.zeros((2, n)), np.zeros(n), np.zeros(n), np.zeros(n)
    fisher = torch.zeros(d, d, dtype=torch.float64, device=subject.device)

    with progress("measuring the influence of all latents", total=len(windows) * (n_draws + 1)) as advance:
        for tokens, firings in iterate_firings(windows, codes, batch=batch, device=subject.device):
            at_pos0 = (firings.tokens % tokens.shape[1] == 0).cpu().numpy()
            latents = firings.latents.cpu().numpy()
            squares += np.bincount(latents, firings.values.double().square().cpu().numpy(), n)
            for draw in range(n_draws):
                gradients = _label_gradients(subject, tokens, hook=hook, target="sampled", generator=generator)
                fisher += (gradients.T @ gradients).double()
                kl = 0.5 * _first_order_changes(gradients, firings, w) ** 2
                halves[2 * draw // n_draws] += np.bincount(latents, kl, n)
                pos0 += np.bincount(latents[at_pos0], kl[at_pos0], n)
                advance(len(tokens))
            gradients = _label_gradients(subject, tokens, hook=hook, target="data", generator=generator)
            first_order -= np.bincount(latents, _first_order_changes(gradients, firings, w), n)
            advance(len(tokens))

    n_tokens, n_predictions = windows.size, windows.size - len(windows)
    halves /= n_tokens * n_draws / 2
    rows = directions.detach().double().cpu().numpy()
    return Influence(
        kl=halves.mean(0), kl_pos0=pos0 / (n_tokens * n_draws), kl_halves=halves, ce_first_order=first_order / n_predictions,
        energy=squares * (rows**2).sum(1) / n_tokens, firings=codes.firings(),
        fisher=(fisher / (n_tokens * n_draws)).cpu().numpy(), directions=rows, n_tokens=n_tokens, n_draws=n_draws,
    )  # fmt: skip


def select_windows(
    windows: Int[np.ndarray, "windows context"], codes: SparseCodes, *, n_windows: int
) -> tuple[Int[np.ndarray, "chosen context"], SparseCodes]:
    """Return up to `n_windows` windows, evenly spread over a text, and their codes."""
    context = windows.shape[1]
    n = min(n_windows, len(windows))
    chosen = np.arange(n) * len(windows) // n
    rows = (chosen[:, None] * context + np.arange(context)).reshape(-1)
    counts = codes.indptr[rows + 1] - codes.indptr[rows]
    indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    spans = [slice(codes.indptr[w * context], codes.indptr[(w + 1) * context]) for w in chosen]
    latents, values = (np.concatenate([array[span] for span in spans]) for array in (codes.latents, codes.values))
    return np.asarray(windows[chosen]), SparseCodes(indptr, latents, values, codes.n_latents)


def check_codes(
    windows: Int[np.ndarray, "windows context"], codes: SparseCodes, directions: Float[Tensor, "n_latents d"]
) -> None:
    """Raise a UserError if codes do not belong to these windows and directions."""
    if codes.n_tokens != windows.size:
        raise UserError(f"the codes are of {codes.n_tokens:,} tokens, the windows have {windows.size:,}")
    if codes.n_latents != len(directions):
        raise UserError(f"the codes are of {codes.n_latents:,} latents, there are {len(directions):,} directions")


def iterate_firings(
    windows: Int[np.ndarray, "windows context"], codes: SparseCodes, *, batch: int, device: torch.device
) -> Iterator[tuple[Int[Tensor, "batch context"], Firings]]:
    """Yield batches of windows with their codes, on the device."""
    context = windows.shape[1]
    for first in range(0, len(windows), batch):
        tokens = torch.from_numpy(np.ascontiguousarray(windows[first : first + batch], np.int64)).to(device)
        part = codes.tokens(first * context, first * context + tokens.numel())
        rows = np.repeat(np.arange(part.n_tokens), np.diff(part.indptr))
        latents = torch.from_numpy(part.latents.astype(np.int64))
        values = torch.from_numpy(part.values.astype(np.float32))
        yield tokens, Firings(torch.from_numpy(rows).to(device), latents.to(device), values.to(device))


def _label_gradients(
    subject: Subject, tokens: Tensor, *, hook: str, target: LabelTarget, generator: torch.Generator
) -> Float[Tensor, "tokens d"]:
    _, gradients = clean_with_label_gradients(
        subject, tokens, hooks=[hook], target=target, generator=generator, capture=()
    )
    return gradients[hook].flatten(0, 1).float()


def _first_order_changes(
    gradients: Float[Tensor, "tokens d"], firings: Firings, directions: Float[Tensor, "n_latents d"]
) -> Float[np.ndarray, "pairs"]:
    """Return g_t · w_i c_i(t) for each pair, in float64."""
    parts = []
    for tokens, latents, values in zip(*(tensor.split(PAIRS) for tensor in firings), strict=True):
        parts.append((gradients[tokens] * directions[latents]).sum(-1) * values)
    return torch.cat(parts).double().cpu().numpy() if parts else np.zeros(0)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b, NaN if b is 0."""
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
