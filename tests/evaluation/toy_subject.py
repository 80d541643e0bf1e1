"""A subject small enough to compute by hand: an embedding, blocks given as functions, no final norm."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from crux.subjects.subject import Clean, Replay, Spliced, Subject, Unembed

Block = Callable[[Tensor], Tensor]


class ToySubject(Subject):
    """tokens → embed[tokens] → each block in turn → logits = h W_Uᵀ. Hooks: resid_pre and the last resid_post."""

    def __init__(self, *, embed: Tensor, blocks: Sequence[Block], W_U: Tensor, softcap: float | None = None) -> None:
        self.embed, self.blocks = embed, blocks
        self._unembed = Unembed(W_U, None, softcap)
        self.name, self.n_layers, self.d_model, self.d_vocab = "toy", len(blocks), embed.shape[1], W_U.shape[0]
        self.n_ctx, self.process_weights = 64, False
        self.passes: list[str] = []

    @property
    def unembed(self) -> Unembed:
        return self._unembed

    @property
    def device(self) -> torch.device:
        return self.embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.dtype

    def _from(self, h: Tensor, hook: str, capture: Collection[str]) -> tuple[dict[str, Tensor], Tensor]:
        seen = {}
        start = int(hook.split(".")[1]) + hook.endswith("resid_post")
        for k in range(start, self.n_layers):
            seen[f"blocks.{k}.hook_resid_pre"] = h
            h = self.blocks[k](h)
        seen[f"blocks.{self.n_layers - 1}.hook_resid_post"] = h
        return {name: seen[name] for name in capture}, h

    def clean(self, tokens: Tensor, *, capture: Collection[str], final: bool = True) -> Clean:
        self.passes.append("clean")
        activations, h = self._from(self.embed[tokens], "blocks.0.hook_resid_pre", capture)
        return Clean(activations, h, Replay([], {}))

    def spliced(
        self, clean: Clean, splice: Mapping[str, Callable[[Tensor], Tensor]], *, capture: Collection[str] = ()
    ) -> Spliced:
        self.passes.append("spliced")
        ((hook, put),) = splice.items()
        return Spliced(*self._from(put(clean.activations[hook]), hook, capture))


def random_toy(*, seed: int, d_vocab: int = 11, d_model: int = 6, n_layers: int = 3, scale: float = 1.0) -> ToySubject:
    """Three blocks that mix positions causally and bend what they mix."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [scale * torch.randn(d_model, d_model, generator=generator) / d_model**0.5 for _ in range(n_layers)]

    def block(matrix: Tensor) -> Block:
        return lambda h: h + torch.tanh(h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[:, None] @ matrix)

    return ToySubject(
        embed=torch.randn(d_vocab, d_model, generator=generator),
        blocks=[block(m) for m in matrices],
        W_U=torch.randn(d_vocab, d_model, generator=generator),
    )
