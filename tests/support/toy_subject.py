"""A subject small enough to compute by hand: an embedding, blocks given as functions, no final norm."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from crux.subjects.hooks import FINAL, Hook, check_hook, sort_hooks
from crux.subjects.subject import Clean, Replay, Spliced, Subject, Unembed
from crux.subjects.tensor_hash import hash_tensors

Block = Callable[[Tensor], Tensor]
Splice = Mapping[str, Callable[[Tensor], Tensor]]


class ToySubject(Subject):
    """A subject that maps tokens to embed[tokens], through each block in turn, to logits h W_Uᵀ.

    Its hook points are each block's resid_pre and the last resid_post.
    """

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

    def hook_width(self, kind: str) -> int:
        return self.d_model

    def hash_weights(self) -> str:
        return hash_tensors({"embed": self.embed, "W_U": self._unembed.W_U})

    def check_hook(self, name: str) -> Hook:
        return check_hook(name, n_layers=self.n_layers)

    def _run_from(
        self, h: Tensor, hook: str, capture: Collection[str], splice: Splice
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Run the network from a hook point on with this activation; return the captured activations and the final hidden state."""
        names = [
            *(f"blocks.{k}.hook_resid_pre" for k in range(self.n_layers)),
            f"blocks.{self.n_layers - 1}.hook_resid_post",
        ]
        activations = {}
        for k in range(names.index(hook), len(names)):
            activations[names[k]] = h = splice.get(names[k], lambda h: h)(h)
            if k < self.n_layers:
                h = self.blocks[k](h)
        return {name: activations[name] for name in capture if name != FINAL}, h

    def clean(self, tokens: Tensor, *, capture: Collection[str], final: bool = True) -> Clean:
        self.passes.append("clean")
        activations, h = self._run_from(self.embed[tokens], "blocks.0.hook_resid_pre", capture, {})
        if FINAL in capture:
            activations[FINAL] = h
        return Clean(activations, h, Replay([], dict.fromkeys(capture, ())))

    def clean_with_gradients(
        self,
        tokens: Tensor,
        *,
        gradient_hooks: Collection[str],
        loss: Callable[[Tensor], Tensor],
        capture: Collection[str] = (),
    ) -> tuple[Clean, dict[str, Tensor]]:
        clean = self.clean(tokens, capture={*capture, *gradient_hooks})
        gradients = {}
        for hook in gradient_hooks:
            with torch.enable_grad():
                x = clean.activations[hook].clone().requires_grad_()
                gradients[hook] = torch.autograd.grad(loss(self._run_from(x, hook, (), {})[1]), x)[0]
        return clean, gradients

    def spliced(self, clean: Clean, splice: Splice, *, capture: Collection[str] = ()) -> Spliced:
        self.passes.append("spliced")
        first = sort_hooks(splice)[0]
        return Spliced(*self._run_from(clean.activations[first], first, capture, splice))

    def continue_from(self, clean: Clean, start: str, value: Tensor, *, ends: Collection[str]) -> dict[str, Tensor]:
        activations, h = self._run_from(value, start, ends, {})
        return activations | ({FINAL: h} if FINAL in ends else {})


def make_random_toy(
    *, seed: int, d_vocab: int = 11, d_model: int = 6, n_layers: int = 3, scale: float = 1.0
) -> ToySubject:
    """Return a random toy subject whose blocks mix positions causally through a tanh."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [scale * torch.randn(d_model, d_model, generator=generator) / d_model**0.5 for _ in range(n_layers)]

    def block(matrix: Tensor) -> Block:
        return lambda h: h + torch.tanh(h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[:, None] @ matrix)

    return ToySubject(
        embed=torch.randn(d_vocab, d_model, generator=generator),
        blocks=[block(m) for m in matrices],
        W_U=torch.randn(d_vocab, d_model, generator=generator),
    )
