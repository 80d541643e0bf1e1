"""The subject: a frozen causal language model, run unmodified (clean pass) or with activations replaced (spliced pass).

The modules of each Hugging Face block are called one by one. Every hook point is therefore a plain tensor, a pass can
start and end at any hook point, and attention still runs as SDPA. Hook points have their TransformerLens names; the tests
compare activations and outputs with TransformerLens.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from crux.config.errors import UserError
from crux.subjects.anatomy import find_parts
from crux.subjects.hooks import FINAL, Hook, check_continuation, check_hook, hook_names, parse_hook, sort_hooks
from crux.subjects.prologue import attention_arguments
from crux.subjects.tensor_hash import hash_tensors
from crux.subjects.walk import walk

_MAX_CACHED_LENGTHS = 4
"""Largest number of sequence lengths whose attention arguments are kept; masks of long contexts need much memory."""


class Unembed(NamedTuple):
    """The map from final hidden states h to logits: softcap(h @ W_U.T + b_U)."""

    W_U: Float[Tensor, "d_vocab d_model"]
    """Unembedding matrix, oriented as in Hugging Face."""
    b_U: Float[Tensor, "d_vocab"] | None
    """Bias of the logits, if the model has one."""
    softcap: float | None
    """The s in s · tanh(logits / s); None if logits are not capped."""


class Replay(NamedTuple):
    """The data that a spliced pass reuses from its clean pass; callers only pass it on."""

    arguments: list[dict[str, object]]
    """Keyword arguments for the attention of each block."""
    carried: dict[str, tuple[Tensor, ...]]
    """For each captured hook point: the tensors, besides its activation, that its block needs to continue from there."""


class Clean(NamedTuple):
    """Result of a clean pass; its tensors carry no gradient."""

    activations: dict[str, Float[Tensor, "batch pos _"]]
    """Captured activations by hook name; the last axis is d_model, or n_heads · d_head at `attn.hook_z`."""
    final: Float[Tensor, "batch pos d_model"] | None
    """Residual stream after the final norm; None if the pass stopped early."""
    replay: Replay
    """The data from which `Subject.spliced` continues."""


class Spliced(NamedTuple):
    """Result of a spliced pass."""

    activations: dict[str, Float[Tensor, "batch pos _"]]
    """Captured activations by hook name; at a spliced hook point, the value that its function returned."""
    final: Float[Tensor, "batch pos d_model"]
    """Residual stream after the final norm."""


class Subject:
    """A frozen language model under study.

    It is not an nn.Module, so that it never ends up in a checkpoint or a parameter list, and `.train()` never reaches it.
    """

    def __init__(self, model: PreTrainedModel, *, name: str, process_weights: bool) -> None:
        """Freeze `model` in place and wrap it; `process_weights` records whether its weights have been processed."""
        self.model = model.eval().requires_grad_(False)
        for module in list(model.modules()):
            for child_name, child in module.named_children():
                if isinstance(child, NewGELUActivation):  # the same function as one kernel instead of eight
                    setattr(module, child_name, nn.GELU(approximate="tanh"))
        self.name, self.process_weights = name, process_weights
        self.parts = find_parts(model)
        self.n_layers = len(self.parts.blocks)
        self.d_vocab, self.d_model = self.parts.head.weight.shape
        self.d_z = self.parts.d_z
        self.n_ctx: int = model.config.max_position_embeddings
        self._arguments: dict[int, list[dict[str, object]]] = {}

    @property
    def unembed(self) -> Unembed:
        """The map from final hidden states to logits, for losses that work in chunks of tokens."""
        softcap = getattr(self.model.config, "final_logit_softcapping", None)
        return Unembed(self.parts.head.weight, self.parts.head.bias, softcap)

    @property
    def device(self) -> torch.device:
        return self.parts.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.head.weight.dtype

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Subject":
        """Move and cast the network in place. Buffers keep their dtype, because rotary frequencies need float32."""
        nn.Module.to(self.model, device=device)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype or parameter.dtype)
        self.forget_lengths()
        return self

    def hash_weights(self) -> str:
        """Return a hash of the network's weights and buffers, their names and types, by which results are cached."""
        return hash_tensors(self.model.state_dict())

    def forget_lengths(self) -> None:
        """Free what is kept per sequence length: masks and positions, which later passes compute again."""
        self._arguments.clear()

    def check_hook(self, name: str) -> Hook:
        """Parse the name of a hook point; raise UserError, with layers or names that exist, if this network does not have it."""
        return check_hook(name, n_layers=self.n_layers, resid_mid=not self.parts.parallel)

    def hook_width(self, kind: str) -> int:
        """Return the width of the activations at hook points of a kind in `hooks.KINDS`."""
        return self.parts.d_z if kind == "z" else self.d_model

    def map_to_residual(self, hook: str, directions: Float[Tensor, "n d"]) -> Float[Tensor, "n d_model"]:
        """Map directions at a hook point to what they add to the residual stream.

        At `attn.hook_z` this applies the attention's output projection without its bias; elsewhere it is the identity.
        """
        parsed = self.check_hook(hook)
        if parsed.kind != "z":
            return directions
        out = self.parts.blocks[parsed.layer].out
        directions = directions.to(self.dtype)
        return out(directions) - out(torch.zeros_like(directions))

    @torch.no_grad()
    def clean(self, tokens: Int[Tensor, "batch pos"], *, capture: Collection[str], final: bool = True) -> Clean:
        """Run the unmodified network and return the activations at the hook points in `capture`, which may include `FINAL`.

        With `final=False` the pass stops at the last captured hook point, so that only the prefix is computed. Raises
        UserError for a hook point that does not exist and for sequences longer than the context.
        """
        if not final and not capture:
            raise UserError("clean(final=False): nothing to compute, capture is empty")
        if FINAL not in capture:
            return self._run(tokens, capture=capture, gradient_hooks=(), final=final)[0]
        clean = self._run(tokens, capture=[name for name in capture if name != FINAL], gradient_hooks=(), final=True)[0]
        assert clean.final is not None
        return clean._replace(activations={**clean.activations, FINAL: clean.final})

    def clean_with_gradients(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        gradient_hooks: Collection[str],
        loss: Callable[[Tensor], Tensor],
        capture: Collection[str] = (),
    ) -> tuple[Clean, dict[str, Tensor]]:
        """Run a clean pass and return it with ∂loss(final hidden state)/∂activation at each of `gradient_hooks`.

        One backward pass goes from `loss` to the first of these hook points and computes gradients of activations only; no
        autograd graph is built before that hook point. The gradients have the activations' shapes and carry no graph. The
        clean pass equals that of `clean`, gradient-free, with the hook points in `capture` and `gradient_hooks`. This works under
        `no_grad` and `inference_mode` too. Raises UserError as `clean` does, and if `gradient_hooks` is empty.
        """
        if not gradient_hooks:
            raise UserError("clean_with_gradients: no hook point given at which to take the gradient")
        with torch.inference_mode(False), torch.enable_grad():
            clean, watched = self._run(
                tokens, capture={*capture, *gradient_hooks}, gradient_hooks=gradient_hooks, final=True
            )
            assert clean.final is not None
            gradients = torch.autograd.grad(loss(clean.final), list(watched.values()))
        return clean._replace(final=clean.final.detach()), dict(zip(watched, gradients, strict=True))

    def _run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        capture: Collection[str],
        gradient_hooks: Collection[str],
        final: bool,
    ) -> tuple[Clean, dict[str, Tensor]]:
        """Run a clean pass; return it with the activations at `gradient_hooks`, the first of which starts the graph."""
        for name in capture:
            self.check_hook(name)
        stop = self._last if final else sort_hooks(capture)[-1]
        arguments = self._get_attention_arguments(tokens.shape[1])
        kept: dict[str, Tensor] = {}
        carried: dict[str, tuple[Tensor, ...]] = {}
        watched: dict[str, Tensor] = {}
        steps = walk(self.parts, arguments, start=Hook(0, "resid_pre"), value=self._embed(tokens), carried=())
        step = next(steps)
        while True:
            name, value = step.name, step.value
            if name in gradient_hooks:
                # the parameters are frozen: the first activation of `gradient_hooks` has no graph yet and starts it
                watched[name] = value if value.requires_grad else value.detach().requires_grad_()
                value = watched[name].view_as(value)  # torch's FLOP counter fails if a module reads a leaf tensor
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
        """Run the network from the first spliced hook point on, replacing each spliced activation by its function's result.

        The first function receives the clean activation; functions at later hook points receive activations that the earlier
        splices have changed. Results are cast to the network's dtype. Gradients flow through the functions but not into the
        network's parameters. Hook points before the first spliced one are not computed and cannot be captured. Raises
        UserError for a hook point that does not exist, an empty `splice`, or if `clean` did not capture the first hook point.
        """
        for name in (*splice, *capture):
            self.check_hook(name)
        if not splice:
            raise UserError("spliced: no hook point given at which to splice")
        first = sort_hooks(splice)[0]
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
        """Names of all hook points in the network's order, ending with `FINAL`."""
        return (*hook_names(self.n_layers, resid_mid=not self.parts.parallel), FINAL)

    def continue_from(self, clean: Clean, start: str, value: Tensor, *, ends: Collection[str]) -> dict[str, Tensor]:
        """Return the activations at `ends` after replacing the activation at `start` by `value`.

        Gradients flow to `value` but not into the network's parameters. `ends` may include `FINAL`, the residual stream after
        the final norm. Nothing after the last of them is computed. Raises UserError for a hook point that does not exist or
        lies before `start`, and if `clean` did not capture `start`.
        """
        check_continuation(self.hooks, start, ends)
        if start not in clean.activations:
            raise UserError(f"continue_from {start}: the clean pass must capture it; it has {list(clean.activations)}")
        if start == FINAL:
            return {FINAL: value}
        reached: dict[str, Tensor] = {}
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
                reached[step.name] = step.value
            if step.name == self._last and FINAL in ends:
                reached[FINAL] = self.parts.final_norm(step.value)
            if len(reached) == len(set(ends)):
                return reached
            step = steps.send(step.value)

    @staticmethod
    def repeat_clean(clean: Clean, hook: str, *, times: int) -> Clean:
        """Repeat the batch of a clean pass `times` times at one captured hook point, for that many spliced passes in one call."""

        def repeat(x: Tensor) -> Tensor:
            return x.repeat(times, *(1 for _ in x.shape[1:]))

        carried = {hook: tuple(repeat(x) for x in clean.replay.carried[hook])}
        replay = clean.replay._replace(carried=carried)
        return Clean({hook: repeat(clean.activations[hook])}, None, replay)

    @property
    def _last(self) -> str:
        """Name of the last hook point inside a block."""
        return Hook(self.n_layers - 1, "resid_post").name

    def _get_attention_arguments(self, pos: int) -> list[dict[str, object]]:
        """Return the arguments of each block's attention for `pos` tokens, computed once per length."""
        if pos > self.n_ctx:
            raise UserError(f"sequences of {pos} tokens: {self.name} accepts at most {self.n_ctx}")
        if pos not in self._arguments:
            if len(self._arguments) == _MAX_CACHED_LENGTHS:
                del self._arguments[next(iter(self._arguments))]  # the oldest
            self._arguments[pos] = attention_arguments(self.model, blocks=self.parts.names.blocks, pos=pos)
        return self._arguments[pos]

    def _embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        resid = self.parts.embed(tokens)
        if self.parts.positions is not None:
            resid = resid + self.parts.positions.weight[: tokens.shape[1]]
        return resid
