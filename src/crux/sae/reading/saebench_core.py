"""The numbers of SAEBench's core evaluation, with its names and definitions, so that they can be compared with published ones.

What `evaluate_sae` lacks is measured here: scores against zero ablation by KL, norms, L1, the cosines within the weights, and numbers
per latent. Definitions are those of SAEBench 0.6.0 (evals/core), even where they are unusual; each of these is marked in
`measure_saebench_core`, and crux's own number stands next to it.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.evaluation.prediction_metrics import iterate_held_out, replace_with
from crux.sae.evaluation.predictions import compare_predictions
from crux.sae.geometry.nearest import find_nearest
from crux.sae.splicing import check_site
from crux.subjects.subject import Clean, Subject

NEARLY_ZERO = 1e-4
"""SAEBench divides by 1 instead of by a norm that is smaller."""


class SaebenchCore(NamedTuple):
    """The metrics of SAEBench's core evaluation. A metric without a value is NaN; SAEBench's files have −1 instead."""

    metrics: dict[str, dict[str, float]]
    """Metrics by category and name, as in SAEBench's files."""
    latents: dict[str, Float[Tensor, "n_latents"]]
    """Numbers of each latent by name; float64, on the CPU."""
    explained_variance_centred: float
    """1 − Σ‖x−x̂‖²/Σ‖x−mean‖² with sums and mean over all counted tokens: crux's explained variance."""
    mse_per_dimension: float
    """Mean over counted tokens and dimensions of (x−x̂)²: crux's mse."""


@torch.no_grad()
def measure_saebench_core(
    subject: Subject,
    site: Site,
    *,
    batches: Iterable[Int[Tensor, "_batch _pos"]],
    ignored: Collection[int] = (),
    force: bool = False,
) -> SaebenchCore:
    """Measure SAEBench's core metrics on token windows, all of which serve for every metric.

    x is the activation that the SAE writes, r = x − x̂, N_b the number of counted tokens of batch b; means are over counted tokens.

        kl_div_with_sae, kl_div_with_ablation    KL(clean ‖ spliced), KL(clean ‖ zeros in place of x), nats
        kl_div_score                             (kl_div_with_ablation − kl_div_with_sae) / kl_div_with_ablation
        ce_loss_with_sae, …_without_sae, …_with_ablation    cross-entropies over the T−1 predictions of a window, nats
        ce_loss_score                            (with_ablation − with_sae) / (with_ablation − without_sae)
        explained_variance          1 − mean ‖r‖² / (mean ‖x‖² − q²), where q is the mean over tokens *and dimensions* of x². q is meant to
                                    be the mean activation but is not, so this is nearly uncentred, and inflated if the mean is large
        explained_variance_legacy   mean of the per-token ratios 1 − ‖r‖² / ‖x − mean of the batch‖²
        mse                         mean of ‖r‖² / N_b: divided by the number of tokens twice
        cossim, l2_norm_in, l2_norm_out, l2_ratio, l0, l1    means of per-token values; l1 is the sum of the codes
        relative_reconstruction_bias    mean ‖x̂‖² / mean ⟨x, x̂⟩ of each batch (Rajamanoharan et al. 2404.16014, eq. 10), mean over batches
        freq_over_1_percent, …          share of latents with a larger density; `normalized`: their share of the sum of densities
        feature_density                 share of the counted tokens on which the latent fires
        consistent_activation_heuristic   firings of the latent per window in which it fires
        encoder_bias, encoder_norm, encoder_decoder_cosine_sim, max_decoder_cosine_sim, max_encoder_cosine_sim    of the weights; the
                                        largest signed cosine with another latent

    Args:
        site: the SAE, folded. The weights of a transcoder with different widths have no `encoder_decoder_cosine_sim`.
        batches: windows; N_b and the means per batch depend on their size, which is 16 windows in SAEBench.
        ignored: tokens that are not counted; SAEBench ignores end-of-text, beginning-of-text and padding. If this is empty, KL
            and CE are those of `evaluate_sae`.
        force: as in `evaluate_sae`.

    Raises:
        UserError: if there are no batches, a window has less than two tokens, or the SAE does not fit the subject.
    """
    check_site(subject, site, force=force)
    predictions, reconstruction = _PredictionSums(), _ReconstructionSums()
    firings = torch.zeros(site.sae.n_latents, dtype=torch.float64, device=subject.device)
    windows_with, n_tokens = torch.zeros_like(firings), 0
    for tokens in iterate_held_out(batches, device=subject.device):
        counted = ~torch.isin(tokens, torch.tensor(sorted(ignored), dtype=tokens.dtype, device=tokens.device))
        clean = subject.clean(tokens, capture={site.read, site.write})
        codes = site.sae.encode(clean.activations[site.read].flatten(0, 1).float())
        x_hat = site.sae.decode(codes)
        predictions.add(subject, site, tokens, clean, x_hat, counted)
        kept = counted.flatten()
        reconstruction.add(clean.activations[site.write].flatten(0, 1).float()[kept], x_hat[kept], codes.c[kept])
        fires = ((codes.c > 0) & kept[:, None]).view(*tokens.shape, -1).sum(1)
        firings += fires.sum(0)
        windows_with += (fires > 0).sum(0)
        n_tokens += tokens.numel()
    n_counted = reconstruction.n_tokens
    latents = {
        "feature_density": (firings / n_counted).cpu(),
        "consistent_activation_heuristic": (firings / windows_with).cpu(),
        **_measure_weights(site.sae),
    }
    metrics = {
        **predictions.results(),
        **reconstruction.results(),
        "token_stats": dict.fromkeys(
            ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"), n_tokens
        ),
        "misc_metrics": _summarise_latents(latents),
    }
    return SaebenchCore(metrics, latents, *reconstruction.centred())


class _PredictionSums:
    """Sums of the KL and the CE of the clean, the spliced and the zero-ablated pass."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(
        self,
        subject: Subject,
        site: Site,
        tokens: Int[Tensor, "batch pos"],
        clean: Clean,
        x_hat: Float[Tensor, "tokens d_out"],
        counted: Bool[Tensor, "batch pos"],
    ) -> None:
        assert clean.final is not None
        labels = F.pad(tokens[:, 1:], (0, 1)).flatten()  # the last position has no next token: its CE is dropped below
        splices = {"with_sae": replace_with(x_hat), "with_ablation": torch.zeros_like}
        for name, splice in splices.items():
            final = subject.spliced(clean, {site.write: splice}).final
            finals = {"clean": clean.final.flatten(0, 1), "spliced": final.flatten(0, 1)}
            compared = compare_predictions(finals, labels=labels, unembed=subject.unembed)
            self._count(f"kl_div_{name}", compared.kl.view_as(tokens)[counted])
            self._count(f"ce_loss_{name}", compared.ce["spliced"].view_as(tokens)[:, :-1][counted[:, :-1]])
            if name == "with_sae":
                self._count("ce_loss_without_sae", compared.ce["clean"].view_as(tokens)[:, :-1][counted[:, :-1]])

    def _count(self, name: str, values: Float[Tensor, "counted"]) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(values.double().sum())
        self._counts[name] = self._counts.get(name, 0) + len(values)

    def results(self) -> dict[str, dict[str, float]]:
        means = {name: _ratio(total, self._counts[name]) for name, total in self._sums.items()}
        kl_sae, kl_ablation = means["kl_div_with_sae"], means["kl_div_with_ablation"]
        ce_sae, ce_ablation, ce_clean = (means[f"ce_loss_{k}"] for k in ("with_sae", "with_ablation", "without_sae"))
        return {
            "model_behavior_preservation": {
                "kl_div_score": _ratio(kl_ablation - kl_sae, kl_ablation),
                "kl_div_with_ablation": kl_ablation,
                "kl_div_with_sae": kl_sae,
            },
            "model_performance_preservation": {
                "ce_loss_score": _ratio(ce_ablation - ce_sae, ce_ablation - ce_clean),
                "ce_loss_with_ablation": ce_ablation,
                "ce_loss_with_sae": ce_sae,
                "ce_loss_without_sae": ce_clean,
            },
        }


class _ReconstructionSums:
    """Sums over tokens, and sums over batches of what SAEBench averages batch by batch."""

    def __init__(self) -> None:
        self.n_tokens, self._n_batches = 0, 0
        self._by_token: dict[str, float] = {}
        self._by_batch: dict[str, float] = {}
        self._sum_x: Tensor | None = None
        self._d = 1

    def add(self, x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"], c: Float[Tensor, "n n_latents"]) -> None:
        if len(x) == 0:
            return
        x, x_hat = x.double(), x_hat.double()
        squared_error, squares = (x - x_hat).square().sum(1), x.square().sum(1)
        norm, norm_hat, product = x.norm(dim=1), x_hat.norm(dim=1), (x * x_hat).sum(1)
        per_token = {
            "squared_error": squared_error,
            "squares": squares,
            "legacy": 1 - squared_error / (x - x.mean(0)).square().sum(1),
            "mse": squared_error / len(x),
            "cossim": product / (norm * norm_hat),
            "l2_norm_in": norm,
            "l2_norm_out": norm_hat,
            "l2_ratio": norm_hat / torch.where(norm < NEARLY_ZERO, 1.0, norm),
            "l0": (c != 0).sum(1),
            "l1": c.sum(1),
        }
        per_batch = {
            "bias": x_hat.square().sum(1).mean() / product.mean(),
            "squares": squares.mean(),
            "squares_per_dimension": x.square().mean(),
            "squared_error": squared_error.mean(),
        }
        for name, values in per_token.items():
            self._by_token[name] = self._by_token.get(name, 0.0) + float(values.double().sum())
        for name, value in per_batch.items():
            self._by_batch[name] = self._by_batch.get(name, 0.0) + float(value)
        self._sum_x = x.sum(0) + (0 if self._sum_x is None else self._sum_x)
        self.n_tokens, self._n_batches, self._d = self.n_tokens + len(x), self._n_batches + 1, x.shape[1]

    def results(self) -> dict[str, dict[str, float]]:
        token = {name: _ratio(total, self.n_tokens) for name, total in self._by_token.items()}
        batch = {name: _ratio(total, self._n_batches) for name, total in self._by_batch.items()}
        variance = batch["squares"] - batch["squares_per_dimension"] ** 2
        return {
            "reconstruction_quality": {
                "explained_variance": 1 - _ratio(batch["squared_error"], variance),
                "explained_variance_legacy": token["legacy"],
                "mse": token["mse"],
                "cossim": token["cossim"],
            },
            "shrinkage": {
                **{name: token[name] for name in ("l2_norm_in", "l2_norm_out", "l2_ratio")},
                "relative_reconstruction_bias": batch["bias"],
            },
            "sparsity": {"l0": token["l0"], "l1": token["l1"]},
        }

    def centred(self) -> tuple[float, float]:
        """Return crux's explained variance and mean squared error per dimension."""
        assert self._sum_x is not None
        total = self._by_token["squares"] - float(self._sum_x.square().sum()) / self.n_tokens
        error = self._by_token["squared_error"]
        return 1 - _ratio(error, total), _ratio(error, self.n_tokens * self._d)


def _ratio(a: float, b: float) -> float:
    """Return a / b, NaN if b is zero."""
    return a / b if b else float("nan")


def _measure_weights(sae: SAE) -> dict[str, Float[Tensor, "n_latents"]]:
    encoder, decoder = sae.W_enc.T.double().cpu(), sae.dictionary().double().cpu()
    same_space = encoder.shape == decoder.shape
    undefined = torch.full((sae.n_latents,), float("nan"), dtype=torch.float64)
    return {
        "encoder_bias": sae.b_enc.double().cpu(),  # of a gated SAE: that of the magnitude, as in SAEBench
        "encoder_norm": encoder.norm(dim=1),
        "encoder_decoder_cosine_sim": F.cosine_similarity(encoder, decoder, dim=1) if same_space else undefined,
        "max_decoder_cosine_sim": _largest_cosines(decoder),
        "max_encoder_cosine_sim": _largest_cosines(encoder),
    }


def _largest_cosines(directions: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """Return the largest signed cosine of each direction with another one; a zero direction has cosine 0 with all."""
    return torch.from_numpy(find_nearest(F.normalize(directions, dim=1).float()).cosines).double()


def _summarise_latents(latents: dict[str, Float[Tensor, "n_latents"]]) -> dict[str, float]:
    density = latents["feature_density"]
    total = float(density.sum())
    over = {
        f"{kind}freq_over_{percent}_percent": value
        for percent in (1, 10)
        for kind, value in (
            ("", float((density > percent / 100).double().mean())),
            ("normalized_", float(density[density > percent / 100].sum()) / total if total else 0.0),
        )
    }
    return {
        **over,
        "average_max_encoder_cosine_sim": float(latents["max_encoder_cosine_sim"].mean()),
        "average_max_decoder_cosine_sim": float(latents["max_decoder_cosine_sim"].mean()),
        "frac_alive": float((density > 0).double().mean()),
    }
