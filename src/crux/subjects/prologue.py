"""The arguments that each block's attention needs besides its input: masks, position ids, rotary embeddings."""

import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crux.subjects.shallow import copy_with_part

_ARGUMENT_NAMES = ("attention_mask", "position_ids", "position_embeddings")
"""Arguments of a block that its attention needs; the others concern caches and outputs that are not used here."""


class _Recorder(nn.Module):
    """A stand-in for a block that records the arguments of its call and returns the residual unchanged."""

    def __init__(self, block: nn.Module, recorded: list[dict[str, object]]) -> None:
        super().__init__()
        self.signature, self.recorded = inspect.signature(block.forward), recorded

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        bound = self.signature.bind_partial(hidden_states, *args, **kwargs).arguments
        bound.update(bound.pop("kwargs", {}))
        self.recorded.append({name: bound[name] for name in _ARGUMENT_NAMES if name in bound})
        return hidden_states


@torch.inference_mode(False)  # the arguments are reused, also in passes with a gradient
@torch.no_grad()
def attention_arguments(model: PreTrainedModel, *, blocks: str, pos: int) -> list[dict[str, object]]:
    """Return the keyword arguments that Hugging Face's forward gives each block's attention for `pos` tokens.

    They depend only on the length (nothing is padded here) and broadcast over the batch. Hugging Face's forward
    synchronises with the device to look for packed sequences. This function therefore runs once per length, on a copy of
    the model that shares its weights and has recorders instead of blocks.
    """
    recorded: list[dict[str, object]] = []
    base = model.base_model
    recorders = nn.ModuleList(_Recorder(block, recorded) for block in base.get_submodule(blocks).children())
    shallow = copy_with_part(base, blocks, recorders)
    shallow(torch.zeros(1, pos, dtype=torch.long, device=model.device), use_cache=False)
    return recorded
