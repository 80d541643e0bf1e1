"""Metrics of the network's predictions in a spliced pass, for one SAE or several together."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.sae.evaluation.predictions import compare_predictions
from crux.sae.evaluation.running_sums import SUBSETS, UNDEFINED, TokenMeans, sum_dtype
from crux.subjects.subject import Clean, Spliced, Subject


class PredictionMetrics:
    """Accumulates cross-entropies, loss recovered, KL and top-1 agreement over batches, as `evaluate_sae` defines them.

    Args:
        ablate: the mean activation at each hook point that is written, for mean ablation; None: no zero or mean ablation.
    """

    def __init__(self, subject: Subject, *, ablate: Mapping[str, Float[Tensor, "_d"]] | None) -> None:
        self._subject = subject
        self._ablated_passes: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {}
        if ablate is not None:
            means = {hook: mean.to(subject.device) for hook, mean in ablate.items()}
            self._ablated_passes["zero"] = dict.fromkeys(means, torch.zeros_like)
            self._ablated_passes["mean"] = {hook: replace_with(mean) for hook, mean in means.items()}
        self.means = TokenMeans()
        """The accumulated means, to which callers may add further quantities of the same tokens."""

    def add(self, tokens: Int[Tensor, "batch pos"], clean: Clean, spliced: Spliced) -> None:
        """Run the ablated passes of one batch and add its metrics; `clean` has captured the first hook point that is written."""
        assert clean.final is not None, "the clean pass must have been run with final=True"
        finals = {"clean": clean.final, "spliced": spliced.final}
        for name, splice in self._ablated_passes.items():
            finals[name] = self._subject.spliced(clean, splice).final
        labels = F.pad(tokens[:, 1:], (0, 1))  # the last position has no next token: its CE is dropped below
        compared = compare_predictions(
            {name: final.flatten(0, 1) for name, final in finals.items()},
            labels=labels.flatten(),
            unembed=self._subject.unembed,
        )
        for name, ce in compared.ce.items():
            self.means.add(f"ce_{name}", ce.view_as(tokens)[:, :-1])
        self.means.add("kl", compared.kl.view_as(tokens))
        self.means.add("top1_agreement", compared.agrees.view_as(tokens))

    def results(self) -> dict[str, Float[Tensor, ""]]:
        """Return the metrics by name and suffix, on the device."""
        metrics = self.means.means()
        for suffix in SUBSETS:
            if f"ce_clean{suffix}" in metrics:
                metrics |= _derive_from_cross_entropies(metrics, suffix)
        return metrics


def replace_with(value: Float[Tensor, "*tokens d"]) -> Callable[[Tensor], Tensor]:
    """Return a splice function that replaces the activation by one vector per token, or by the same vector at every token."""

    def splice(activation: Tensor) -> Tensor:
        replacement = value.to(activation.dtype)
        return replacement.view_as(activation) if value.ndim > 1 else replacement.expand_as(activation)

    return splice


def iterate_held_out(
    batches: Iterable[Int[Tensor, "_batch _pos"]], *, device: torch.device
) -> Iterator[Int[Tensor, "_batch _pos"]]:
    """Yield the held-out batches on the device, with a progress bar.

    Raises:
        UserError: if a window has less than two tokens, or there is no batch.
    """
    tokens = None
    for tokens in track(batches, "evaluating on held-out text"):
        if tokens.shape[1] < 2:
            raise UserError("a held-out window has 1 token; a next-token prediction needs at least 2")
        yield tokens.to(device)
    if tokens is None:
        raise UserError("there is no held-out text for the evaluation: not one batch")


def to_numbers(metrics: Mapping[str, Tensor], *, device: torch.device) -> dict[str, float]:
    """Return metrics as Python numbers, with one transfer from the device; metrics without a value are left out."""
    values = torch.stack([value.to(sum_dtype(device)) for value in metrics.values()]).tolist()
    return {name: value for name, value in zip(metrics, values, strict=True) if value != UNDEFINED}


def _derive_from_cross_entropies(metrics: Mapping[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """Return CE increase and loss recovered of a subset, which follow from its cross-entropies."""
    clean, spliced = metrics[f"ce_clean{suffix}"], metrics[f"ce_spliced{suffix}"]
    derived = {f"ce_increase{suffix}": spliced - clean}
    for ablation in ("zero", "mean"):
        if (ablated := metrics.get(f"ce_{ablation}{suffix}")) is not None:
            recovered = torch.where(ablated == clean, UNDEFINED, (ablated - spliced) / (ablated - clean))
            derived[f"loss_recovered_{ablation}{suffix}"] = recovered
    return derived
