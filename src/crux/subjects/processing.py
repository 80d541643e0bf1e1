"""TransformerLens's weight processing on Hugging Face modules: fold the norms into the maps that read them, centre weights.

For LayerNorm y = (x − mean) / √(var + ε) · w + b, followed by a linear map W (inputs × outputs) with bias d:
    W ← diag(w) W, d ← d + b W, then subtract from each column of W its mean (the normalised x has mean 0); w = 1, b = 0.
Maps that write into the residual stream, embeddings included, are centred over d_model, because every norm that reads
the stream subtracts the mean. The unembedding is centred over the vocabulary, which does not change the softmax. RMSNorm
does depend on the residual's mean: there, only the norm's weight is folded and the unembedding centred. Attention
patterns sum to one, so a value bias passes through attention unchanged and is moved into the output projection's bias.
The network computes the same function, up to one constant added to all logits of a token; the residual stream and
`attn.hook_z` change. A map without a bias is given one if something is folded into it.

`TransformerBridge.enable_compatibility_mode` does the same, but leaves the fused attention weights of the wrapped module
unprocessed. This module processes them too; the tests compare it with the bridge.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from crux.config.errors import UserError
from crux.subjects.anatomy import find_parts

SUPPORTED = ("gpt2", "gpt_neox", "llama")
"""Architectures (`model_type`) whose weights can be processed exactly."""


def _view_matrix(linear: nn.Module) -> Tensor:
    """Return the weight as inputs × outputs; it shares memory with the module's weight."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(linear, Conv1D) else weight.T


def _give_bias(linear: nn.Module) -> Tensor:
    """Return the bias of a linear map; a map without one is given a bias of zeros."""
    if not isinstance(linear.bias, Tensor):
        matrix = _view_matrix(linear)
        linear.bias = nn.Parameter(matrix.new_zeros(matrix.shape[1]), requires_grad=False)
    assert isinstance(linear.bias, Tensor)
    return linear.bias


def _fold_norm(norm: nn.Module, readers: list[nn.Module]) -> None:
    """Fold the norm's weight and bias into the linear maps that read its output."""
    scale, shift = norm.weight, getattr(norm, "bias", None)
    assert isinstance(scale, Tensor)
    for reader in readers:
        matrix = _view_matrix(reader)
        if isinstance(shift, Tensor):
            _give_bias(reader).add_(shift.double() @ matrix.double())
        folded = scale.double()[:, None] * matrix.double()
        matrix.copy_(folded - folded.mean(0) if isinstance(norm, nn.LayerNorm) else folded)
    scale.fill_(1.0)
    if isinstance(shift, Tensor):
        shift.zero_()


def _move_value_bias(bias: Tensor, out: nn.Module, *, config: PreTrainedConfig) -> None:
    """Move the values' part of an attention input bias into the bias of the output projection."""
    n_heads = config.num_attention_heads
    match config.model_type:
        case "gpt2":
            values = bias.view(3, n_heads, -1)[2]  # all queries, then all keys, then all values
        case "gpt_neox":
            values = bias.view(n_heads, 3, -1)[:, 2]  # query, key and value of each head
        case _:
            values = bias.view(config.num_key_value_heads, -1)  # a separate map; a head may serve several query heads
    value_of_each_head = values.repeat_interleave(n_heads // len(values), 0).flatten()
    _give_bias(out).add_(value_of_each_head.double() @ _view_matrix(out).double())
    values.zero_()


def _centre(weight: Tensor) -> None:
    """Subtract the mean over the last axis, in place."""
    weight.sub_(weight.double().mean(-1, keepdim=True))


@torch.no_grad()
def process_weights(model: PreTrainedModel) -> None:
    """Process the weights of a causal language model in place; untie the unembedding and give it a bias.

    The weights should be float32. Raises UserError for architectures that cannot be processed exactly.
    """
    kind = model.config.model_type
    if kind not in SUPPORTED:
        raise UserError(f"model.process_weights: not supported for {kind}; allowed are {', '.join(SUPPORTED)}")
    model.requires_grad_(False)
    parts = find_parts(model)
    names = parts.names
    original = parts.head.weight  # possibly also the embedding's weight, which is processed differently
    head = nn.Linear(original.shape[1], original.shape[0], device=original.device, dtype=original.dtype)
    head.weight.copy_(original)
    head.bias.zero_() if parts.head.bias is None else head.bias.copy_(parts.head.bias)
    model.set_output_embeddings(head)
    model.config.tie_word_embeddings = False

    for block, part in zip(model.base_model.get_submodule(names.blocks).children(), parts.blocks, strict=True):
        _fold_norm(part.norm1, [block.get_submodule(name) for name in names.reads1])
        _fold_norm(part.norm2, [block.get_submodule(name) for name in names.reads2])
        if isinstance(bias := block.get_submodule(names.reads1[-1]).bias, Tensor):
            _move_value_bias(bias, part.out, config=model.config)
        if isinstance(part.norm1, nn.LayerNorm):
            for name in names.writes:
                writer = block.get_submodule(name)
                _centre(_view_matrix(writer))
                if isinstance(writer.bias, Tensor):
                    _centre(writer.bias)
    _fold_norm(parts.final_norm, [head])
    if isinstance(parts.final_norm, nn.LayerNorm):
        _centre(parts.embed.weight)
        if parts.positions is not None:
            _centre(parts.positions.weight)
    head.weight.sub_(head.weight.double().mean(0))  # over the vocabulary
    head.bias.sub_(head.bias.double().mean())
    model.requires_grad_(False)
