"""What the blocks' attention is called with besides the residual: masks, position ids, rotary embeddings."""

import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crux.subjects.shallow import with_part

_KEPT = ("attention_mask", "position_ids", "position_embeddings")


class _Recorder(nn.Module):
    """Stands in a block's place: notes what it is called with and returns the residual untouched."""

    def __init__(self, block: nn.Module, noted: list[dict[str, object]]) -> None:
        super().__init__()
        self.signature, self.noted = inspect.signature(block.forward), noted

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        bound = self.signature.bind_partial(hidden_states, *args, **kwargs).arguments
        bound.update(bound.pop("kwargs", {}))
        self.noted.append({name: bound[name] for name in _KEPT if name in bound})
        return hidden_states


@torch.inference_mode(False)  # the arguments are kept, and serve passes with a gradient too
@torch.no_grad()
def attention_arguments(model: PreTrainedModel, *, blocks: str, pos: int) -> list[dict[str, object]]:
    """Keyword arguments of each block's attention for sequences of `pos` tokens, from Hugging Face's own forward.

    They depend on the length alone (nothing is padded here), and hold for every batch size by broadcasting. Hugging
    Face's forward waits for the device while it looks for packed sequences; so this runs once a length, on a copy of
    the model that shares its weights and has recorders instead of blocks.
    """
    noted: list[dict[str, object]] = []
    base = model.base_model
    recorders = nn.ModuleList(_Recorder(block, noted) for block in base.get_submodule(blocks).children())
    shallow = with_part(base, blocks, recorders)
    shallow(torch.zeros(1, pos, dtype=torch.long, device=model.device), use_cache=False)
    return noted
