"""The terms that losses are made of, in one training step."""

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
"""1 for a token that the loss counts, 0 for one that it leaves out; None: it counts all."""


class ForwardResults(NamedTuple):
    """What the forward passes of one batch left. Sequences are by SAE, batch and positions flattened."""

    sae_passes: Sequence[SaePass]
    """What each SAE read, its codes and its reconstruction."""
    targets: Sequence[Float[Tensor, "tokens _d"]]
    """The clean activations that they reconstruct."""
    weights: Sequence[Weight]
    clean: Clean | None = None
    """The network's clean pass; None if the batch holds activations."""
    spliced: Spliced | None = None
    """Its spliced pass, of several runs one behind the other; None if the loss needs none."""
    unembed: Unembed | None = None
    """From final hidden states to logits, if there is a spliced pass."""
    drawn: Mapping[str, Float[Tensor, "batch pos _d"]] = {}
    """By write hook, the gradient of the drawn labels' loss; empty if the loss does not look at it."""


class TrainingStep:
    """The terms of one step. Each is recorded in `terms`, and so in the history, when it is computed.

    A term is returned by run. Values that are one per SAE are added up over a run's SAEs; `terms` holds them one by one.

    Args:
        separate: whether each SAE is a run of its own; otherwise all are one.
        sparsity: λ of each SAE.
        dead: by SAE, the latents that AuxK brings back; empty if `auxk.coefficient` is 0.
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
        """Iterate over the SAEs: site, what went through it, its target, the tokens' weights."""
        return zip(self.sites, self.forward.sae_passes, self.forward.targets, self.forward.weights, strict=True)

    def record(self, name: str, values: Sequence[Float[Tensor, ""]]) -> Float[Tensor, "runs"]:
        """Record a term under `name` and return it by run; `values` are one per SAE or one per run."""
        self.terms[name] = list(values)
        return self._by_run(values)

    def _by_run(self, values: Sequence[Float[Tensor, ""]]) -> Float[Tensor, "runs"]:
        stacked = torch.stack(list(values))
        return stacked if self.separate else stacked.sum()[None]

    def mse(self) -> Float[Tensor, "runs"]:
        """Return MSE(x̂, x) of normalised activations, so that λ means the same whatever their scale."""
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
        everywhere, batch = self._shared_weight(), clean.final.shape[:2]
        by_position = None if everywhere is None else everywhere.view(batch)
        values: list[Tensor] = []
        for first in range(0, len(spliced.final), batch[0]):
            one = {hook: value[first : first + batch[0]] for hook, value in spliced.activations.items()}
            values.append(downstream_mse(one, clean.activations, weight=by_position))
        return self.record("downstream", values)

    def _shared_weight(self) -> Weight:
        """1 for tokens that every SAE counts."""
        weights = [weight for weight in self.forward.weights if weight is not None]
        return torch.stack(weights).prod(0) if weights else None

    def sparsity(self) -> Float[Tensor, "runs"]:
        """Return what does not depend on the loss: λ · penalty + the architecture's auxiliary term + AuxK."""
        return self._by_run([self._sparsity_terms(i, *about) for i, about in enumerate(self.by_sae())])

    def _sparsity_terms(self, i: int, site: Site, passed: SaePass, target: Tensor, weight: Weight) -> Float[Tensor, ""]:
        sae, codes = site.sae, passed.codes
        terms = {"sparsity": sae.penalty(codes, weight=weight)}
        loss = self._sparsity[i] * terms["sparsity"]
        if (auxiliary := sae.auxiliary(codes, target, weight=weight)) is not None:
            terms["auxiliary"] = auxiliary
            loss = loss + auxiliary
        if self._auxk.coefficient > 0:
            terms["auxk"] = auxk_loss(
                codes.pre,
                sae.dictionary(),
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
