"""The modules of each supported architecture: embedding, blocks (norms, attention, MLP), final norm and unembedding."""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from crux.subjects.shallow import copy_with_part


class ModuleNames(NamedTuple):
    """Names of an architecture's modules; names inside a block are relative to the block."""

    embed: str
    positions: str | None
    """Learned position embedding, if the architecture adds one to the token embedding."""
    blocks: str
    final_norm: str
    norm1: str
    attn: str
    post1: str | None
    """Norm of the attention's output, before it is added to the residual (Gemma 2 and 3)."""
    norm2: str
    mlp: str
    post2: str | None
    """Norm of the MLP's output, before it is added to the residual (Gemma 2 and 3)."""
    reads1: tuple[str, ...]
    """Linear maps that read the output of norm1, and into which the weight processing folds norm1; the last one gives the values."""
    reads2: tuple[str, ...]
    """Linear maps that read the output of norm2, and into which the weight processing folds norm2."""
    writes: tuple[str, str]
    """Linear maps that write into the residual stream: the output projections of the attention and of the MLP."""


_LLAMA = ModuleNames(
    embed="embed_tokens", positions=None, blocks="layers", final_norm="norm",
    norm1="input_layernorm", attn="self_attn", post1=None,
    norm2="post_attention_layernorm", mlp="mlp", post2=None,
    reads1=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), reads2=("mlp.gate_proj", "mlp.up_proj"),
    writes=("self_attn.o_proj", "mlp.down_proj"),
)  # fmt: skip
_GEMMA2 = _LLAMA._replace(
    post1="post_attention_layernorm", norm2="pre_feedforward_layernorm", post2="post_feedforward_layernorm"
)
MODULE_NAMES = {
    "gpt2": ModuleNames(
        embed="wte", positions="wpe", blocks="h", final_norm="ln_f",
        norm1="ln_1", attn="attn", post1=None, norm2="ln_2", mlp="mlp", post2=None,
        reads1=("attn.c_attn",), reads2=("mlp.c_fc",), writes=("attn.c_proj", "mlp.c_proj"),
    ),
    "gpt_neox": ModuleNames(
        embed="embed_in", positions=None, blocks="layers", final_norm="final_layer_norm",
        norm1="input_layernorm", attn="attention", post1=None,
        norm2="post_attention_layernorm", mlp="mlp", post2=None,
        reads1=("attention.query_key_value",), reads2=("mlp.dense_h_to_4h",),
        writes=("attention.dense", "mlp.dense_4h_to_h"),
    ),
    "llama": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
}  # fmt: skip


class BlockParts(NamedTuple):
    """The modules of one block, with the names of `ModuleNames`."""

    norm1: nn.Module
    attn: nn.Module
    """Attention without its output projection: `attn(hidden_states, **arguments)[0]` are the concatenated head outputs."""
    out: nn.Module
    """The attention's output projection."""
    post1: nn.Module | None
    norm2: nn.Module
    mlp: nn.Module
    post2: nn.Module | None


class Anatomy(NamedTuple):
    """The parts of a causal language model."""

    names: ModuleNames
    embed: nn.Embedding
    positions: nn.Embedding | None
    blocks: list[BlockParts]
    parallel: bool
    """True if attention and MLP of a block read the same residual (GPT-NeoX's default)."""
    final_norm: nn.Module
    head: nn.Linear
    d_z: int
    """Width of the concatenated head outputs, n_heads · d_head."""


def _copy_without_projection(block: nn.Module, names: ModuleNames) -> nn.Module:
    """Return a shallow copy of the block's attention that skips the output projection and shares all other modules."""
    return copy_with_part(block.get_submodule(names.attn), names.writes[0].rpartition(".")[2], nn.Identity())


def find_parts(model: PreTrainedModel) -> Anatomy:
    """Return the parts of a model whose architecture is a key of `MODULE_NAMES`."""
    names, base = MODULE_NAMES[model.config.model_type], model.base_model
    blocks = [
        BlockParts(
            norm1=block.get_submodule(names.norm1),
            attn=_copy_without_projection(block, names),
            out=block.get_submodule(names.writes[0]),
            post1=block.get_submodule(names.post1) if names.post1 else None,
            norm2=block.get_submodule(names.norm2),
            mlp=block.get_submodule(names.mlp),
            post2=block.get_submodule(names.post2) if names.post2 else None,
        )
        for block in base.get_submodule(names.blocks).children()
    ]
    n_heads, d_head = model.config.num_attention_heads, getattr(model.config, "head_dim", None)
    embed, head = base.get_submodule(names.embed), model.get_output_embeddings()
    positions = base.get_submodule(names.positions) if names.positions else None
    assert isinstance(embed, nn.Embedding)
    assert isinstance(head, nn.Linear)
    assert positions is None or isinstance(positions, nn.Embedding)
    return Anatomy(
        names=names,
        embed=embed,
        positions=positions,
        blocks=blocks,
        parallel=bool(getattr(model.config, "use_parallel_residual", False)),
        final_norm=base.get_submodule(names.final_norm),
        head=head,
        d_z=n_heads * (d_head or model.config.hidden_size // n_heads),
    )
