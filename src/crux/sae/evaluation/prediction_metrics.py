"""What a splice costs the network's predictions: the same numbers for one SAE and for several together."""

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
    """Cross-entropies, loss recovered, KL and agreement over a stream of batches, as `evaluate_sae` defines them.

    Args:
        ablate: what mean ablation puts at each hook point that is written; None: no ablated passes.
    """

    def __init__(self, subject: Subject, *, ablate: Mapping[str, Float[Tensor, "_d"]] | None) -> None:
        self._subject = subject
        self._passes: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {}
        if ablate is not None:
            means = {hook: mean.to(subject.device) for hook, mean in ablate.items()}
            self._passes["zero"] = dict.fromkeys(means, torch.zeros_like)
            self._passes["mean"] = {hook: replace_with(mean) for hook, mean in means.items()}
        self.means = TokenMeans()
        """Takes in further quantities of the same tokens."""

    def add(self, tokens: Int[Tensor, "batch pos"], clean: Clean, spliced: Spliced) -> None:
        """Takes in one batch; runs the ablated passes. `clean` has the first of the hook points that are written."""
        assert clean.final is not None, "a clean pass with final=True ends with the final hidden state"
        finals = {"clean": clean.final, "spliced": spliced.final}
        for name, splice in self._passes.items():
            finals[name] = self._subject.spliced(clean, splice).final
        labels = F.pad(tokens[:, 1:], (0, 1))  # the last position has no next token: its CE is cut off below
        read_out = compare_predictions(
            {name: final.flatten(0, 1) for name, final in finals.items()},
            labels=labels.flatten(),
            unembed=self._subject.unembed,
        )
        for name, ce in read_out.ce.items():
            self.means.add(f"ce_{name}", ce.view_as(tokens)[:, :-1])
        self.means.add("kl", read_out.kl.view_as(tokens))
        self.means.add("top1_agreement", read_out.agrees.view_as(tokens))

    def results(self) -> dict[str, Float[Tensor, ""]]:
        """name + suffix → value, on the device."""
        found = self.means.means()
        for suffix in SUBSETS:
            if f"ce_clean{suffix}" in found:
                found |= _from_cross_entropies(found, suffix)
        return found


def replace_with(value: Float[Tensor, "*tokens d"]) -> Callable[[Tensor], Tensor]:
    """A splice that puts one vector a token, or one vector at every token, in place of the activation."""

    def splice(activation: Tensor) -> Tensor:
        value_here = value.to(activation.dtype)
        return value_here.view_as(activation) if value.ndim > 1 else value_here.expand_as(activation)

    return splice


def iterate_held_out(
    batches: Iterable[Int[Tensor, "_batch _pos"]], *, device: torch.device
) -> Iterator[Int[Tensor, "_batch _pos"]]:
    """The batches, on the device; UserError for windows without a prediction, and where there is not one batch."""
    tokens = None
    for tokens in track(batches, "evaluating on held-out text"):
        if tokens.shape[1] < 2:
            raise UserError("a held-out window has 1 token; a next-token prediction needs at least 2")
        yield tokens.to(device)
    if tokens is None:
        raise UserError("there is no held-out text to judge on: not one batch")


def to_numbers(found: Mapping[str, Tensor], *, device: torch.device) -> dict[str, float]:
    """Metrics as plain numbers, read from the device at once; what has no value is left out."""
    values = torch.stack([value.to(sum_dtype(device)) for value in found.values()]).tolist()
    return {name: value for name, value in zip(found, values, strict=True) if value != UNDEFINED}


def _from_cross_entropies(found: Mapping[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """What the four cross-entropies of a subset say together."""
    clean, spliced = found[f"ce_clean{suffix}"], found[f"ce_spliced{suffix}"]
    derived = {f"ce_increase{suffix}": spliced - clean}
    for ablation in ("zero", "mean"):
        if (ablated := found.get(f"ce_{ablation}{suffix}")) is not None:
            recovered = torch.where(ablated == clean, UNDEFINED, (ablated - spliced) / (ablated - clean))
            derived[f"loss_recovered_{ablation}{suffix}"] = recovered
    return derived
