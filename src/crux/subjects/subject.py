"""The subject: a frozen causal language model, run untouched (clean pass) or with activations replaced (spliced pass).

The blocks are called by hand, part by part, on the Hugging Face modules: every hook point is a plain tensor on the
way, a pass can begin and end at any of them, and the attention stays SDPA. TransformerLens gives the names and, in the
tests, the truth.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from crux.subjects.anatomy import anatomy
from crux.subjects.hooks import Hook, check_hook, in_order, parse_hook
from crux.subjects.prologue import attention_arguments
from crux.subjects.walk import walk

_LENGTHS_KEPT = 4  # masks of long contexts are large


class Unembed(NamedTuple):
    """The map from final hidden states to logits: softcap(h @ W_U.T + b_U)."""

    W_U: Float[Tensor, "d_vocab d_model"]
    """Unembedding matrix, as Hugging Face stores it."""
    b_U: Float[Tensor, "d_vocab"] | None
    """Bias of the logits; None where there is none."""
    softcap: float | None
    """s: logits → s · tanh(logits / s); None where logits are not capped."""


class Replay(NamedTuple):
    """What a spliced pass needs of its clean pass; opaque to callers."""

    arguments: list[dict[str, object]]
    """Keyword arguments of each block's attention."""
    carried: dict[str, tuple[Tensor, ...]]
    """For each captured hook, what its block still needs behind it besides the hook's own value."""


class Clean(NamedTuple):
    """Result of a clean pass; no gradient flows in it."""

    activations: dict[str, Float[Tensor, "batch pos d_model"]]
    """The captured hooks, by name."""
    final: Float[Tensor, "batch pos d_model"] | None
    """Residual stream after the final norm; None where the pass stopped early."""
    replay: Replay
    """For `Subject.spliced`."""


class Spliced(NamedTuple):
    """Result of a spliced pass."""

    activations: dict[str, Float[Tensor, "batch pos d_model"]]
    """The captured hooks, by name, at a spliced hook as its function returned it."""
    final: Float[Tensor, "batch pos d_model"]
    """Residual stream after the final norm."""


class Subject:
    """A frozen network under study. Not an nn.Module: it never enters a checkpoint, a parameter list or `.train()`."""

    def __init__(self, model: PreTrainedModel, *, name: str, process_weights: bool) -> None:
        """Takes `model` over: freezes it in place. `process_weights` states whether its weights have been processed."""
        self.model = model.eval().requires_grad_(False)
        for module in list(model.modules()):
            for child_name, child in module.named_children():
                if isinstance(child, NewGELUActivation):  # the same function, in one kernel instead of eight
                    setattr(module, child_name, nn.GELU(approximate="tanh"))
        self.name, self.process_weights = name, process_weights
        self.parts = anatomy(model)
        self.n_layers = len(self.parts.blocks)
        self.d_vocab, self.d_model = self.parts.head.weight.shape
        self.n_ctx: int = model.config.max_position_embeddings
        self._arguments: dict[int, list[dict[str, object]]] = {}

    @property
    def unembed(self) -> Unembed:
        """From final hidden states to logits, for losses that work in chunks of tokens."""
        softcap = getattr(self.model.config, "final_logit_softcapping", None)
        return Unembed(self.parts.head.weight, self.parts.head.bias, softcap)

    @property
    def device(self) -> torch.device:
        return self.parts.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.head.weight.dtype

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Subject":
        """Moves and casts the network in place. Buffers keep their type: rotary frequencies need float32."""
        nn.Module.to(self.model, device=device)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype or parameter.dtype)
        self._arguments.clear()
        return self

    def check(self, name: str) -> Hook:
        """The hook point of that name; ValueError with the nearest names where this network does not have it."""
        return check_hook(name, n_layers=self.n_layers, resid_mid=not self.parts.parallel)

    @torch.no_grad()
    def clean(self, tokens: Int[Tensor, "batch pos"], *, capture: Collection[str], final: bool = True) -> Clean:
        """Runs the network untouched and keeps the activations at the hooks in `capture`.

        With `final=False` the run stops as soon as the last captured hook is there: only the prefix is executed. Raises
        ValueError for a hook point that does not exist and for sequences longer than the context.
        """
        for name in capture:
            self.check(name)
        if not final and not capture:
            raise ValueError("clean(final=False): nothing to do, capture is empty")
        stop = self._last if final else in_order(capture)[-1]
        arguments = self._attention_arguments(tokens.shape[1])
        kept: dict[str, Tensor] = {}
        carried: dict[str, tuple[Tensor, ...]] = {}
        steps = walk(self.parts, arguments, start=Hook(0, "resid_pre"), value=self._embed(tokens), carried=())
        step = next(steps)
        while True:
            if step.name in capture:
                kept[step.name], carried[step.name] = step.value, step.carried
            if step.name == stop:
                break
            step = steps.send(step.value)
        hidden = self.parts.final_norm(step.value) if final else None
        return Clean(kept, hidden, Replay(arguments, carried))

    def spliced(
        self,
        clean: Clean,
        splice: Mapping[str, Callable[[Tensor], Tensor]],
        *,
        capture: Collection[str] = (),
    ) -> Spliced:
        """Replays what lies behind the first spliced hook, with each function's result in its hook's place.

        The function at the first hook is given the clean activation; those at later hooks see what the earlier splices
        made of theirs. Results are cast to the network's dtype. Gradients flow through the functions, none into the
        network. Hooks before the first spliced one are not run and cannot be captured. Raises ValueError for a hook
        point that does not exist, an empty `splice`, or where `clean` did not capture the first hook.
        """
        for name in (*splice, *capture):
            self.check(name)
        if not splice:
            raise ValueError("spliced: no hook point given to splice at")
        first = in_order(splice)[0]
        if first not in clean.activations:
            raise ValueError(f"spliced at {first}: the clean pass must capture it; it has {list(clean.activations)}")
        if before := [name for name in capture if parse_hook(name).order < parse_hook(first).order]:
            raise ValueError(f"spliced at {first}: {before[0]} lies before it; take it from the clean pass")
        replay = clean.replay
        kept: dict[str, Tensor] = {}
        steps = walk(
            self.parts,
            replay.arguments,
            start=parse_hook(first),
            value=clean.activations[first],
            carried=replay.carried[first],
        )
        step = next(steps)
        while True:
            value = step.value
            if step.name in splice:
                value = splice[step.name](step.value).to(step.value.dtype)
                assert value.shape == step.value.shape, f"{step.name}: {value.shape} in place of {step.value.shape}"
            if step.name in capture:
                kept[step.name] = value
            if step.name == self._last:
                return Spliced(kept, self.parts.final_norm(value))
            step = steps.send(value)

    @property
    def _last(self) -> str:
        return Hook(self.n_layers - 1, "resid_post").name

    def _attention_arguments(self, pos: int) -> list[dict[str, object]]:
        if pos > self.n_ctx:
            raise ValueError(f"sequences of {pos} tokens: {self.name} reads at most {self.n_ctx}")
        if pos not in self._arguments:
            if len(self._arguments) == _LENGTHS_KEPT:
                del self._arguments[next(iter(self._arguments))]
            self._arguments[pos] = attention_arguments(self.model, blocks=self.parts.names.blocks, pos=pos)
        return self._arguments[pos]

    def _embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        resid = self.parts.embed(tokens)
        if self.parts.positions is not None:
            resid = resid + self.parts.positions.weight[: tokens.shape[1]]
        return resid
