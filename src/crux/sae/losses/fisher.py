"""The Fisher loss: a second-order estimate of the end-to-end KL that only needs the clean pass (docs/reference/gradient_saes.md §5).

    ½ (Σ_t g_t · δ_t)² / T,   g = ∂(Σ_t −log q_t(y_t))/∂x at the clean activations,   y_t ~ q_t,   δ = x̂ − x

Over labels drawn from the predictions of the network, E[(Σ_t g_t · δ_t)²] = δᵀ F δ with F the Fisher information, and the KL
summed over positions is ½ δᵀ F δ + O(δ³). One draw of the labels gives an estimate that is unbiased to that order, without a
spliced pass.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.loss import Loss
from crux.sae.losses.options import Fisher
from crux.sae.losses.step import TrainingStep


class FisherLoss(Loss[Fisher]):
    """The loss reconstruction · MSE + fisher · ½ (Σ_t g_t·δ_t)² / T + λ · penalty, on token batches.

    The labels of g are drawn from the clean predictions, anew for every batch and independently of the text. A gradient SAE is
    given the gradient of its own `gradient_target`; if that is `sampled`, both gradients are of the same drawn labels.
    """

    term_labels: ClassVar = {"mse": "MSE", "fisher": "Fisher surrogate (nats/token)"}
    needs_drawn_gradients = True

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        options = self.options
        return step.sparsity() + options.reconstruction * step.mse() + options.fisher * self.surrogate(step)

    def surrogate(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        """Return the surrogate of the KL for each run, summed over its SAEs."""
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
    """Return a one-sample surrogate of the mean KL(clean ‖ spliced), in nats per token, averaged over sequences.

    `gradient` is g, the gradient of a loss that is *summed* over tokens (`label_loss` with target `sampled`); it is treated as a
    constant. `error` is δ. With `block_diagonal` the result is the mean over tokens of ½ (g_t · δ_t)², which is less noisy but
    ignores interactions between the errors at two positions. Tokens of `weight` 0 (not 1) are left out of the sum and of T.
    """
    change = (gradient.detach().float() * error.float()).sum(-1)  # first-order change of the summed label loss
    if weight is not None:
        change = change * weight
    if block_diagonal:
        return 0.5 * (change.square().mean() if weight is None else change.square().sum() / weight.sum())
    # a sequence without counted tokens contributes zero
    n_tokens = change.shape[1] if weight is None else weight.sum(1).clamp_min(1)
    return 0.5 * (change.sum(1).square() / n_tokens).mean()
