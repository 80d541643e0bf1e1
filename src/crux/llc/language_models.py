"""A language model's loss as a function of some of its parameters, for samplers: a sequence a sample."""

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
from crux.llc.coordinates import refuse_aliases

NEAREST = 3
"""Names that the message about an unknown one suggests."""


def moving(model: PreTrainedModel, patterns: Sequence[str]) -> dict[str, Float[Tensor, "..."]]:
    """Return the parameters whose names match one of the patterns (* stands for anything), in the model's order; a shared one comes once.

    Raises:
        UserError: for a pattern that matches none, with the nearest names; if two of them lie in one storage.
    """
    there = dict(model.named_parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in there):
            near = difflib.get_close_matches(pattern, there, n=NEAREST, cutoff=0) or sorted(there)[:NEAREST]
            raise UserError(f"llc.parameters: {pattern} names no parameter of the model; near are {', '.join(near)}")
    found = {
        name: value.detach() for name, value in there.items() if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    refuse_aliases(found)
    return found


def next_token_loss(model: PreTrainedModel) -> Callable[[dict[str, Tensor], Int[Tensor, "sample pos"]], Tensor]:
    """Return `one(params, tokens) → [sample]` for `over_chains`: the mean cross-entropy of a sequence's T − 1 predictions, nats.

    `params` are those that move; the others are the model's own, so that what comes before the first of them runs once for all chains
    that see the same data. Attention runs in products and a softmax: the fused kernels have no second derivative.
    """

    def one(params: dict[str, Tensor], tokens: Int[Tensor, "sample pos"]) -> Float[Tensor, "sample"]:
        n = tokens.shape[1]
        past = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril()
        mask = torch.zeros(n, n, dtype=model.dtype, device=tokens.device).masked_fill(
            ~past, torch.finfo(model.dtype).min
        )
        # a mask of four axes is taken as it is: the library's own cannot be built inside of a vmap
        given = {
            "input_ids": tokens,
            "attention_mask": mask.expand(tokens.shape[0], 1, n, n),
            "position_ids": torch.arange(n, device=tokens.device)[None],
            "use_cache": False,
        }
        with sdpa_kernel(SDPBackend.MATH):
            logits = functional_call(model, params, kwargs=given).logits
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        return losses.unflatten(0, (tokens.shape[0], n - 1)).mean(1)

    return one
