"""A one-layer ReLU transformer without norms that adds two numbers mod p (Nanda et al. 2301.05217). Its output is at the last position.

    a, b, "=" → resid_pre = W_E + W_pos → resid_mid = resid_pre + attention → resid_post = resid_mid + MLP → (resid_post at "=") · W_U

Causal attention without biases, MLP with biases, p logits. The hook points have TransformerLens's names, with all three positions at each.
`last_position_chain` is the same network with only the position of "=" after the attention, which is all that the output depends on.
`logits` returns the same values as `forward` with about a quarter of its arithmetic, and is used for training.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from crux.config.checked_tensors import read_checked_tensors, write_checked_tensors
from crux.config.errors import UserError
from crux.config.files import write_text
from crux.degeneracy.basis_options import AdditionSizes
from crux.degeneracy.networks.addition_folder import MODEL_TYPE
from crux.degeneracy.networks.chain import Chain

PRE, MID, POST, OUTPUT = "blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid", "blocks.0.hook_resid_post", "output"
"""Names of the hook points."""


class Embed(nn.Module):
    """The embedding of tokens (p is "=") and positions in the residual stream."""

    def __init__(self, sizes: AdditionSizes) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(sizes.p + 1, sizes.d_model))
        self.W_pos = nn.Parameter(torch.empty(3, sizes.d_model))

    def forward(self, tokens: Int[Tensor, "batch 3"]) -> Float[Tensor, "batch 3 d_model"]:
        return self.W_E[tokens] + self.W_pos


class Attention(nn.Module):
    """Causal attention, added to the residual stream."""

    def __init__(self, sizes: AdditionSizes) -> None:
        super().__init__()
        heads = sizes.n_heads, sizes.d_model, sizes.d_head
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.empty(heads)) for _ in range(3))
        self.W_O = nn.Parameter(torch.empty(sizes.n_heads, sizes.d_head, sizes.d_model))

    def forward(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        q, k, v = (torch.einsum("bpm,hmd->bhpd", resid, W) for W in (self.W_Q, self.W_K, self.W_V))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=resid.device).triu(1)
        z = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return resid + torch.einsum("bhpd,hdm->bpm", z, self.W_O)

    def attend_last(
        self,
        first: Float[Tensor, "p d_model"],
        second: Float[Tensor, "p d_model"],
        last: Float[Tensor, "d_model"],
        a: Int[Tensor, "batch"],
        b: Int[Tensor, "batch"],
    ) -> Float[Tensor, "batch d_model"]:
        """Return the output at the last position, computed from tables.

        Args:
            first: the residual stream at the first position for each number; keys and values are computed once per row.
            second: the same for the second position.
            last: the residual stream at the position of "=".
            a: first number of each pair.
            b: second number of each pair.
        """
        n_heads, d_model, d_head = self.W_Q.shape
        q = torch.einsum("m,hmd->hd", last, self.W_Q) / d_head**0.5
        to_scores = torch.einsum("hd,hmd->mh", q, self.W_K)  # maps a residual to its attention score in each head
        to_values = self.W_V.transpose(0, 1).reshape(d_model, n_heads * d_head)
        scores = [
            F.embedding(a, first @ to_scores),
            F.embedding(b, second @ to_scores),
            (last @ to_scores).expand(len(a), -1),
        ]
        pattern = torch.stack(scores, -1).softmax(-1)[..., None, :]

        def split_heads(v: Tensor) -> Tensor:
            return v.view(-1, n_heads, d_head)

        z = split_heads(F.embedding(a, first @ to_values)) * pattern[..., 0]
        z = (
            z
            + split_heads(F.embedding(b, second @ to_values)) * pattern[..., 1]
            + split_heads(last @ to_values) * pattern[..., 2]
        )
        return torch.addmm(last, z.flatten(1), self.W_O.flatten(0, 1))


class MLP(nn.Module):
    """A ReLU layer, added to the residual stream."""

    def __init__(self, sizes: AdditionSizes) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(sizes.d_model, sizes.d_mlp))
        self.b_in = nn.Parameter(torch.zeros(sizes.d_mlp))
        self.W_out = nn.Parameter(torch.empty(sizes.d_mlp, sizes.d_model))
        self.b_out = nn.Parameter(torch.zeros(sizes.d_model))

    def forward(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return resid + F.relu(self.pre_activations(resid)) @ self.W_out + self.b_out

    def pre_activations(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_mlp"]:
        """Return the neurons' pre-activations."""
        return resid @ self.W_in + self.b_in


class UnembedLast(nn.Module):
    """The unembedding at the last position, which returns the logits of the sum."""

    def __init__(self, sizes: AdditionSizes) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.empty(sizes.d_model, sizes.p))

    def forward(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch p"]:
        return resid[:, -1] @ self.W_U


class LastPosition(nn.Module):
    """A stage that reads all positions and returns its output at the last one."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch 1 d_model"]:
        return self.stage(resid)[:, -1:]


class ModularAddition(Chain):
    """The modular-addition transformer. Its weights are uninitialised until `init_weights` or `load_addition` sets them."""

    def __init__(self, sizes: AdditionSizes) -> None:
        super().__init__({PRE: Embed(sizes), MID: Attention(sizes), POST: MLP(sizes), OUTPUT: UnembedLast(sizes)})
        self.sizes = sizes

    @property
    def parts(self) -> tuple[Embed, Attention, MLP, UnembedLast]:
        """The stages of the chain with their types."""
        return cast(tuple[Embed, Attention, MLP, UnembedLast], tuple(self.stages.values()))

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw normal weights with standard deviation 1/√d_model (unembedding: 1/√p), and set biases to 0."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.rpartition(".")[2].startswith("b_"):
                    parameter.zero_()
                else:
                    width = self.sizes.p if name.endswith("W_U") else self.sizes.d_model
                    parameter.normal_(0, width**-0.5, generator=generator)

    def logits(self, tokens: Int[Tensor, "batch 3"]) -> Float[Tensor, "batch p"]:
        """Return the same logits as `forward` for tokens (a, b, "="), with gradients."""
        embed, attention, mlp, unembed = self.parts
        p, position = self.sizes.p, embed.W_pos
        numbers, equals = embed.W_E[:p], embed.W_E[p]
        mid = attention.attend_last(
            numbers + position[0], numbers + position[1], equals + position[2], tokens[:, 0], tokens[:, 1]
        )
        hidden = torch.addmm(mlp.b_in, mid, mlp.W_in).relu_()
        return (mid + torch.addmm(mlp.b_out, hidden, mlp.W_out)) @ unembed.W_U

    def pre_activations(self, resid_mid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_mlp"]:
        """Return the MLP's pre-activations, given the residual stream at its input."""
        return self.parts[2].pre_activations(resid_mid)

    def last_position_chain(self) -> Chain:
        """Return a chain with the same weights whose activations after the attention are only those at "=": [batch, 1, d_model]."""
        embed, attention, mlp, unembed = self.parts
        return Chain({PRE: embed, MID: LastPosition(attention), POST: mlp, OUTPUT: unembed})

    def mlp_chain(self) -> Chain:
        """Return the MLP as a chain with copied weights, from `hook_resid_mid` at "=" to the MLP's contribution to the logits.

        It has no skip connection: the logits of the network are its output plus `hook_resid_mid` @ W_U.
        Its hook points are `blocks.0.hook_resid_mid`, `blocks.0.mlp.hook_pre`, `blocks.0.mlp.hook_post`, `blocks.0.hook_mlp_out`, `output`.
        """
        *_, mlp, unembed = self.parts
        maps = [(mlp.W_in, mlp.b_in), (mlp.W_out, mlp.b_out), (unembed.W_U, None)]
        linear_in, linear_out, unembedding = (_build_linear(*weights) for weights in maps)
        stages = {MID: nn.Identity(), "blocks.0.mlp.hook_pre": linear_in, "blocks.0.mlp.hook_post": nn.ReLU()}
        return Chain({**stages, "blocks.0.hook_mlp_out": linear_out, OUTPUT: unembedding})


def _build_linear(weight: Float[Tensor, "d_in d_out"], bias: Float[Tensor, "d_out"] | None) -> nn.Linear:
    """Return the map x → x @ weight + bias."""
    stage = nn.Linear(*weight.shape, bias=bias is not None).to(weight)
    with torch.no_grad():
        stage.weight.copy_(weight.T)
        if bias is not None:
            stage.bias.copy_(bias)
    return stage


class Pairs(NamedTuple):
    """All p² pairs of numbers, as tokens (a, b, "="), split into training pairs and held-out pairs."""

    train: Int[Tensor, "train 3"]
    test: Int[Tensor, "test 3"]

    @staticmethod
    def sums(tokens: Int[Tensor, "batch 3"]) -> Int[Tensor, "batch"]:
        """Return (a + b) mod p."""
        return (tokens[:, 0] + tokens[:, 1]) % tokens[:, 2]  # "=" is token p


def split_pairs(p: int, *, train_share: float, seed: int) -> Pairs:
    """Shuffle all p² pairs and return the first share of them for training, and the rest as held out."""
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    tokens = torch.stack([order // p, order % p, torch.full_like(order, p)], dim=1)
    n = int(train_share * p * p)
    return Pairs(tokens[:n], tokens[n:])


def save_addition(folder: Path, network: ModularAddition, *, train_share: float, seed: int) -> None:
    """Write `config.json`, which also says how the pairs were split, and then `model.safetensors`, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {field.name: getattr(network.sizes, field.name) for field in fields(AdditionSizes)}
    about = {"model_type": MODEL_TYPE, **sizes, "train_share": train_share, "seed": seed}
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    write_text(folder / "config.json", json.dumps(about, indent=2) + "\n")
    write_checked_tensors(folder / "model.safetensors", weights)


def load_addition(folder: Path) -> tuple[ModularAddition, Pairs]:
    """Load the network and pairs that `save_addition` wrote.

    Raises:
        UserError: if the weights do not match config.json.
    """
    weights = read_checked_tensors(folder / "model.safetensors", required=False)
    try:
        about = json.loads((folder / "config.json").read_text("utf-8"))
        network = ModularAddition(AdditionSizes(**{field.name: about[field.name] for field in fields(AdditionSizes)}))
        pairs = split_pairs(about["p"], train_share=about["train_share"], seed=about["seed"])
        network.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise UserError(
            f"model folder {folder}: the weights do not fit config.json: {' '.join(str(error).split())}"
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise UserError(f"model folder {folder}: the weights are not finite")
    return network, pairs
