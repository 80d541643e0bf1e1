"""The Fisher-weighted error: the end-to-end KL's second order, from the clean pass alone (docs/reference/gradient_saes.md §5).

    ½ (Σ_t g_t · δ_t)² / T,   g = ∂(Σ_t −log q_t(y_t))/∂x at the clean activations,   y_t ~ q_t,   δ = x̂ − x

Over labels drawn from the model's own predictions, E[(Σ_t g_t · δ_t)²] = δᵀ F δ with F the Fisher information, and the KL
summed over positions is ½ δᵀ F δ + O(δ³): one sample, unbiased to that order, without a spliced pass.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.loss import Loss
from crux.sae.losses.options import Fisher
from crux.sae.losses.step import TrainingStep


class FisherLoss(Loss[Fisher]):
    """reconstruction · MSE + fisher · ½ (Σ_t g_t·δ_t)² / T + λ · penalty, on token batches.

    The labels of g are drawn from the clean predictions, anew for every batch and independently of the text. An SAE that looks
    at a gradient itself is shown the one of its own labels, which are the same draw if those are drawn too.
    """

    term_labels: ClassVar = {"mse": "MSE", "fisher": "Fisher surrogate (nats/token)"}
    needs_drawn_gradients = True

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        o = self.options
        return step.sparsity() + o.reconstruction * step.mse() + o.fisher * self.surrogate(step)

    def surrogate(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        """Return each run's surrogate of the KL, summed over its SAEs."""
        values: list[Tensor] = []
        for site, passed, target, weight in step.by_sae():
            gradient = step.forward.drawn[site.write].to(target.dtype)
            delta = (passed.reconstruction - target).view(gradient.shape)
            by_position = None if weight is None else weight.view(gradient.shape[:2])
            values.append(
                fisher_surrogate(gradient, delta, block_diagonal=self.options.block_diagonal, weight=by_position)
            )
        return step.record("fisher", values)


def fisher_surrogate(
    gradient: Float[Tensor, "batch pos d"],
    error: Float[Tensor, "batch pos d"],
    *,
    block_diagonal: bool,
    weight: Float[Tensor, "batch pos"] | None,
) -> Float[Tensor, ""]:
    """One-sample surrogate of the mean KL(clean ‖ spliced), in nats a token, averaged over sequences.

    `gradient` is g, of a loss *summed* over tokens (`label_loss`, target `sampled`), a constant here; `error` is δ. With
    `block_diagonal` it is the mean over tokens of ½ (g_t · δ_t)², less noisy but blind to what the errors of two positions
    do together. `weight` (0 or 1 a token) leaves tokens out, of the sum and of T.
    """
    change = (gradient.detach().float() * error.float()).sum(-1)  # of the labels' summed loss, to first order
    if weight is not None:
        change = change * weight
    if block_diagonal:
        return 0.5 * (change.square().mean() if weight is None else change.square().sum() / weight.sum())
    n_tokens = (
        change.shape[1] if weight is None else weight.sum(1).clamp_min(1)
    )  # a sequence of which nothing counts adds nothing
    return 0.5 * (change.sum(1).square() / n_tokens).mean()
