"""A language model's loss as a function of some of its parameters, for samplers; one sample is one sequence."""

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from crux.config.errors import UserError
from crux.llc.coordinates import reject_aliases

N_SUGGESTIONS = 3
"""Number of parameter names that the error message about a pattern without a match suggests."""


def select_parameters(model: PreTrainedModel, patterns: Sequence[str]) -> dict[str, Float[Tensor, "..."]]:
    """Return the parameters whose names match a pattern (* matches anything), in the model's order; a shared one appears once.

    Raises:
        UserError: if a pattern matches no parameter (with the nearest names), or if two parameters share memory.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            nearest = (
                difflib.get_close_matches(pattern, parameters, n=N_SUGGESTIONS, cutoff=0)
                or sorted(parameters)[:N_SUGGESTIONS]
            )
            raise UserError(
                f"llc.parameters: {pattern} matches no parameter of the model; nearest are {', '.join(nearest)}"
            )
    selected = {
        name: value.detach()
        for name, value in parameters.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    reject_aliases(selected)
    return selected


def next_token_loss(model: PreTrainedModel) -> Callable[[dict[str, Tensor], Int[Tensor, "sample pos"]], Tensor]:
    """Return a loss for `map_over_chains`: (params, tokens) → mean cross-entropy of each sequence's T − 1 predictions, in nats.

    `params` are the parameters that move; all others keep the model's values. Modules before the first moving parameter therefore
    run only once for all chains with the same data. Attention uses plain matrix products and a softmax, because the fused kernels
    have no second derivative.
    """

    def loss(params: dict[str, Tensor], tokens: Int[Tensor, "sample pos"]) -> Float[Tensor, "sample"]:
        n = tokens.shape[1]
        past = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril()
        mask = torch.zeros(n, n, dtype=model.dtype, device=tokens.device).masked_fill(
            ~past, torch.finfo(model.dtype).min
        )
        # a mask with four axes is used unchanged; the library could not build one inside vmap
        inputs = {
            "input_ids": tokens,
            "attention_mask": mask.expand(tokens.shape[0], 1, n, n),
            "position_ids": torch.arange(n, device=tokens.device)[None],
            "use_cache": False,
        }
        with sdpa_kernel(SDPBackend.MATH):
            logits = functional_call(model, params, kwargs=inputs).logits
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        return losses.unflatten(0, (tokens.shape[0], n - 1)).mean(1)

    return loss
