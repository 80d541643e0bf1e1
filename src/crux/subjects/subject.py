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

from crux.config.errors import UserError
from crux.subjects.anatomy import anatomy
from crux.subjects.hooks import FINAL, Hook, check_hook, check_onward, hook_names, in_order, parse_hook
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

    activations: dict[str, Float[Tensor, "batch pos _"]]
    """The captured hooks, by name; d_model wide, at `attn.hook_z` n_heads · d_head."""
    final: Float[Tensor, "batch pos d_model"] | None
    """Residual stream after the final norm; None where the pass stopped early."""
    replay: Replay
    """For `Subject.spliced`."""


class Spliced(NamedTuple):
    """Result of a spliced pass."""

    activations: dict[str, Float[Tensor, "batch pos _"]]
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
        self.d_z = self.parts.d_z
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
        """The hook point of that name; UserError with the nearest names where this network does not have it."""
        return check_hook(name, n_layers=self.n_layers, resid_mid=not self.parts.parallel)

    def hook_width(self, kind: str) -> int:
        """Dimensions of the activations at a hook point of that kind, one of `hooks.KINDS`."""
        return self.parts.d_z if kind == "z" else self.d_model

    def in_residual(self, hook: str, directions: Float[Tensor, "n d"]) -> Float[Tensor, "n d_model"]:
        """What directions at a hook point add to the residual stream: at `hook_z` through the attention's output projection."""
        place = self.check(hook)
        if place.kind != "z":
            return directions
        out = self.parts.blocks[place.layer].out
        directions = directions.to(self.dtype)
        return out(directions) - out(torch.zeros_like(directions))

    @torch.no_grad()
    def clean(self, tokens: Int[Tensor, "batch pos"], *, capture: Collection[str], final: bool = True) -> Clean:
        """Runs the network untouched and keeps the activations at the hooks in `capture`.

        With `final=False` the run stops as soon as the last captured hook is there: only the prefix is executed; `FINAL` may
        be among them. Raises UserError for a hook point that does not exist and for sequences longer than the context.
        """
        if not final and not capture:
            raise UserError("clean(final=False): nothing to do, capture is empty")
        if FINAL not in capture:
            return self._run(tokens, capture=capture, of=(), final=final)[0]
        clean = self._run(tokens, capture=[name for name in capture if name != FINAL], of=(), final=True)[0]
        assert clean.final is not None
        return clean._replace(activations={**clean.activations, FINAL: clean.final})

    def clean_with_gradients(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        of: Collection[str],
        loss: Callable[[Tensor], Tensor],
        capture: Collection[str] = (),
    ) -> tuple[Clean, dict[str, Tensor]]:
        """A clean pass, and the gradient of `loss(final hidden state)` at the hooks in `of`: ∂loss/∂activation.

        One backward pass towards activations alone, from `loss` to the first of the hooks, whose prefix builds no graph;
        the gradients are constants of the activations' shapes. The clean pass keeps the hooks in `capture` and in `of`,
        and is `clean`'s own, gradient-free too. Works under `no_grad` and `inference_mode` as well. Raises UserError
        as `clean` does, and for an empty `of`.
        """
        if not of:
            raise UserError("clean_with_gradients: no hook point given to take the gradient at")
        with torch.inference_mode(False), torch.enable_grad():
            clean, watched = self._run(tokens, capture={*capture, *of}, of=of, final=True)
            assert clean.final is not None
            gradients = torch.autograd.grad(loss(clean.final), list(watched.values()))
        return clean._replace(final=clean.final.detach()), dict(zip(watched, gradients, strict=True))

    def _run(
        self, tokens: Int[Tensor, "batch pos"], *, capture: Collection[str], of: Collection[str], final: bool
    ) -> tuple[Clean, dict[str, Tensor]]:
        """The clean pass, and the activations at the hooks in `of`, from the first of which on there is a graph."""
        for name in capture:
            self.check(name)
        stop = self._last if final else in_order(capture)[-1]
        arguments = self._attention_arguments(tokens.shape[1])
        kept: dict[str, Tensor] = {}
        carried: dict[str, tuple[Tensor, ...]] = {}
        watched: dict[str, Tensor] = {}
        steps = walk(self.parts, arguments, start=Hook(0, "resid_pre"), value=self._embed(tokens), carried=())
        step = next(steps)
        while True:
            name, value = step.name, step.value
            if name in of:
                # the network is frozen: what does not come from an earlier hook of `of` has no graph yet
                watched[name] = value if value.requires_grad else value.detach().requires_grad_()
                value = watched[name].view_as(value)  # torch's FLOP counter breaks where a module reads a leaf
            if name in capture:
                kept[name], carried[name] = value.detach(), tuple(x.detach() for x in step.carried)
            if name == stop:
                break
            step = steps.send(value)
        hidden = self.parts.final_norm(value) if final else None
        return Clean(kept, hidden, Replay(arguments, carried)), watched

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
        network. Hooks before the first spliced one are not run and cannot be captured. Raises UserError for a hook
        point that does not exist, an empty `splice`, or where `clean` did not capture the first hook.
        """
        for name in (*splice, *capture):
            self.check(name)
        if not splice:
            raise UserError("spliced: no hook point given to splice at")
        first = in_order(splice)[0]
        if first not in clean.activations:
            raise UserError(f"spliced at {first}: the clean pass must capture it; it has {list(clean.activations)}")
        if before := [name for name in capture if parse_hook(name).order < parse_hook(first).order]:
            raise UserError(f"spliced at {first}: {before[0]} lies before it; take it from the clean pass")
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
    def hooks(self) -> tuple[str, ...]:
        """Names of the hook points, in the network's order, `FINAL` last."""
        return (*hook_names(self.n_layers, resid_mid=not self.parts.parallel), FINAL)

    def onward(self, clean: Clean, start: str, value: Tensor, *, ends: Collection[str]) -> dict[str, Tensor]:
        """The activations at `ends` with `value` in place of the one at `start`; gradients flow to `value`, none into the network.

        `ends` may have `FINAL` among them, the residual stream after the final norm. Nothing behind the last end is run. Raises
        UserError for a hook point that does not exist or lies before `start`, and where `clean` did not capture `start`.
        """
        check_onward(self.hooks, start, ends)
        if start not in clean.activations:
            raise UserError(f"onward from {start}: the clean pass must capture it; it has {list(clean.activations)}")
        if start == FINAL:
            return {FINAL: value}
        found: dict[str, Tensor] = {}
        steps = walk(
            self.parts,
            clean.replay.arguments,
            start=parse_hook(start),
            value=value,
            carried=clean.replay.carried[start],
        )
        step = next(steps)
        while True:
            if step.name in ends:
                found[step.name] = step.value
            if step.name == self._last and FINAL in ends:
                found[FINAL] = self.parts.final_norm(step.value)
            if len(found) == len(set(ends)):
                return found
            step = steps.send(step.value)

    @staticmethod
    def repeated(clean: Clean, hook: str, *, times: int) -> Clean:
        """The clean pass of its sequences `times` over, kept at one captured hook: for as many spliced passes in one call."""

        def again(x: Tensor) -> Tensor:
            return x.repeat(times, *(1 for _ in x.shape[1:]))

        carried = {hook: tuple(again(x) for x in clean.replay.carried[hook])}
        replay = clean.replay._replace(carried=carried)
        return Clean({hook: again(clean.activations[hook])}, None, replay)

    @property
    def _last(self) -> str:
        return Hook(self.n_layers - 1, "resid_post").name

    def _attention_arguments(self, pos: int) -> list[dict[str, object]]:
        if pos > self.n_ctx:
            raise UserError(f"sequences of {pos} tokens: {self.name} reads at most {self.n_ctx}")
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
