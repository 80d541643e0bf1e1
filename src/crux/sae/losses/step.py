"""The terms of a loss in one training step: MSE, KL, downstream MSE, and the terms of sparsity."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.sae.architectures.options import Auxk
from crux.sae.architectures.site import Site
from crux.sae.losses.auxk import auxk_loss
from crux.sae.losses.kl import mean_kl
from crux.sae.losses.mse import downstream_mse, mse
from crux.sae.splicing import SaePass
from crux.subjects.subject import Clean, Spliced, Unembed
from crux.training import ranks

Weight = Float[Tensor, "tokens"] | None
"""1 for a token that the loss counts, 0 for a token that it leaves out; None if it counts all tokens."""


class ForwardResults(NamedTuple):
    """The results of the forward passes of one batch. Sequences have one entry per SAE; batch and positions are flattened."""

    sae_passes: Sequence[SaePass]
    """Input, codes and reconstruction of each SAE."""
    targets: Sequence[Float[Tensor, "tokens _d"]]
    """The clean activation that each SAE reconstructs."""
    weights: Sequence[Weight]
    """The tokens that the loss counts, for each SAE."""
    clean: Clean | None = None
    """The clean pass of the network; None if the batch consists of activations."""
    spliced: Spliced | None = None
    """The spliced pass, or those of several runs concatenated along the batch; None if the loss needs none."""
    unembed: Unembed | None = None
    """The unembedding, which maps final hidden states to logits; None if there is no spliced pass."""
    drawn: Mapping[str, Float[Tensor, "batch pos _d"]] = {}
    """The gradients of the loss of drawn labels, by the hook point written; empty if the loss does not need them."""


class TrainingStep:
    """The terms of a loss in one training step. A term that is computed is also recorded in `terms`, and so in the history.

    Each method returns one value per run. If a term has one value per SAE, these are summed over the SAEs of a run; `terms`
    holds the values of the single SAEs.

    Args:
        separate: whether each SAE is a separate run; otherwise all SAEs are one run.
        sparsity: λ of each SAE.
        dead: the dead latents of each SAE, which AuxK trains; empty if `auxk.coefficient` is 0.
    """

    def __init__(
        self,
        forward: ForwardResults,
        sites: Sequence[Site],
        *,
        separate: bool,
        sparsity: Float[Tensor, "n_saes"],
        auxk: Auxk,
        dead: Sequence[Bool[Tensor, "_n_latents"]],
    ) -> None:
        self.forward, self.sites, self.separate = forward, sites, separate
        self._sparsity, self._auxk, self._dead = sparsity, auxk, dead
        self.terms: dict[str, list[Tensor]] = {}

    def by_sae(self) -> Iterator[tuple[Site, SaePass, Tensor, Weight]]:
        """Iterate over the SAEs: site, forward pass through the SAE, target, and weights of the tokens."""
        return zip(self.sites, self.forward.sae_passes, self.forward.targets, self.forward.weights, strict=True)

    def record(self, name: str, values: Sequence[Float[Tensor, ""]]) -> Float[Tensor, "runs"]:
        """Record a term under `name` and return it for each run; `values` has one entry per SAE or per run."""
        self.terms[name] = list(values)
        return self._by_run(values)

    def _by_run(self, values: Sequence[Float[Tensor, ""]]) -> Float[Tensor, "runs"]:
        """Return one value per run from one value per SAE or per run."""
        stacked = torch.stack(list(values))
        return stacked if self.separate else stacked.sum()[None]

    def counted_tokens(self) -> Float[Tensor, "runs"] | None:
        """Return the number of tokens that the loss of each run counts, of several SAEs the least; None if no token is left out."""
        counts = [weight.sum() for weight in self.forward.weights if weight is not None]
        if not counts:
            return None
        stacked = torch.stack(counts)
        return stacked if self.separate else stacked.min()[None]

    def mse(self) -> Float[Tensor, "runs"]:
        """Return MSE(x̂, x) of normalised activations, so that the meaning of λ does not depend on their scale."""
        return self.record(
            "mse",
            [
                mse(passed.reconstruction, target, weight=weight) * site.sae.output_scale**2
                for site, passed, target, weight in self.by_sae()
            ],
        )

    def kl(self) -> Float[Tensor, "runs"]:
        """Return the mean KL(clean ‖ spliced) over the tokens that every SAE counts, in nats per token."""
        clean, spliced, unembed = self.forward.clean, self.forward.spliced, self.forward.unembed
        assert clean is not None
        assert clean.final is not None
        assert spliced is not None
        assert unembed is not None
        W_U, b_U, softcap = unembed
        truth = clean.final.flatten(0, 1)
        finals = spliced.final.view(-1, *truth.shape)  # one per run
        return self.record(
            "kl", list(mean_kl(finals, truth, W_U, b_U=b_U, softcap=softcap, weight=self._shared_weight()))
        )

    def downstream(self) -> Float[Tensor, "runs"]:
        """Return the MSE at the later hook points of the spliced pass, averaged over them; squared activation units."""
        clean, spliced = self.forward.clean, self.forward.spliced
        assert clean is not None
        assert clean.final is not None
        assert spliced is not None
        weight, batch = self._shared_weight(), clean.final.shape[:2]
        by_position = None if weight is None else weight.view(batch)
        values: list[Tensor] = []
        for start in range(0, len(spliced.final), batch[0]):  # the sequences of one run after those of another
            run_activations = {hook: value[start : start + batch[0]] for hook, value in spliced.activations.items()}
            values.append(downstream_mse(run_activations, clean.activations, weight=by_position))
        return self.record("downstream", values)

    def _shared_weight(self) -> Weight:
        """Return 1 for tokens that are counted at every SAE, else 0."""
        weights = [weight for weight in self.forward.weights if weight is not None]
        return torch.stack(weights).prod(0) if weights else None

    def sparsity(self) -> Float[Tensor, "runs"]:
        """Return the sum of the terms that every loss has: λ · penalty + the architecture's auxiliary term + AuxK."""
        return self._by_run([self._sparsity_terms(i, *sae_data) for i, sae_data in enumerate(self.by_sae())])

    def _sparsity_terms(self, i: int, site: Site, passed: SaePass, target: Tensor, weight: Weight) -> Float[Tensor, ""]:
        """Return these terms of the i-th SAE."""
        sae, codes = site.sae, passed.codes
        terms = {"sparsity": sae.penalty(codes, weight=weight)}
        loss = self._sparsity[i] * terms["sparsity"]
        if (auxiliary := sae.auxiliary(codes, target, weight=weight)) is not None:
            terms["auxiliary"] = auxiliary
            loss = loss + auxiliary
        if self._auxk.coefficient > 0:
            terms["auxk"] = auxk_loss(
                codes,
                sae.W_dec,
                (target - passed.reconstruction) * sae.output_scale,
                dead=self._dead[i],
                k=min(self._auxk.k or sae.d_model // 2, sae.n_latents),
                weight=weight,
                mean_over_ranks=ranks.mean_over_ranks,
            )
            loss = loss + self._auxk.coefficient * terms["auxk"]
        for name, value in terms.items():
            self.terms.setdefault(name, []).append(value)
        return loss
