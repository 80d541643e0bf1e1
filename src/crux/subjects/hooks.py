"""Names and order of the hook points, as in TransformerLens.

This module imports only the standard library, so that a mistyped name is reported before torch is loaded.

The hook points of a block are, in order,
`hook_resid_pre → attn.hook_z → hook_attn_out → hook_resid_mid → hook_mlp_out → hook_resid_post`. Blocks whose attention
and MLP read the same residual (parallel GPT-NeoX) have no `hook_resid_mid`. `attn.hook_z`, the input of the attention's
output projection, has its heads concatenated (width n_heads · d_head), whereas TransformerLens keeps a separate head axis.
A value spliced in at `hook_resid_mid` replaces the residual stream, skip connection included, as in HookedTransformer;
TransformerBridge 4.3 changes only the MLP's input.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from crux.config.errors import UserError

KINDS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
FINAL = "ln_final.hook_normalized"
"""The residual stream after the final norm, which the unembedding reads."""
_SUFFIXES = {kind: "attn.hook_z" if kind == "z" else f"hook_{kind}" for kind in KINDS}
_NAME = re.compile(r"blocks\.(\d+)\.(" + "|".join(map(re.escape, _SUFFIXES.values())) + ")")


class Hook(NamedTuple):
    """A hook point inside a block, parsed from its name; compare positions by `order`."""

    layer: int
    """Index of the block, from 0."""
    kind: str
    """One of `KINDS`."""

    @property
    def name(self) -> str:
        """The TransformerLens name, such as `blocks.6.hook_resid_pre`."""
        return f"blocks.{self.layer}.{_SUFFIXES[self.kind]}"

    @property
    def order(self) -> tuple[int, int]:
        """A sort key: hook points that are computed earlier have smaller values."""
        return self.layer, KINDS.index(self.kind)


def hook_names(n_layers: int, *, resid_mid: bool = True) -> list[str]:
    """List all hook points inside the blocks of a subject with `n_layers` blocks, in the network's order."""
    kinds = [kind for kind in KINDS if resid_mid or kind != "resid_mid"]
    return [Hook(layer, kind).name for layer in range(n_layers) for kind in kinds]


def parse_hook(name: str) -> Hook:
    """Parse a hook point's name into layer and kind; raise UserError if it does not have the form of one."""
    if (match := _NAME.fullmatch(name)) is None:
        raise UserError(
            f"hook_point={name}: no such hook point; allowed are blocks.<layer>.<hook>, <hook> one of "
            f"{', '.join(_SUFFIXES.values())}"
        )
    return Hook(int(match[1]), match[2].rpartition("hook_")[2])


def check_layer(layer: int, *, n_layers: int) -> None:
    """Raise UserError if the subject has no such layer."""
    if not 0 <= layer < n_layers:
        raise UserError(f"layer={layer}: the model has {n_layers} layers, allowed are 0 to {n_layers - 1}")


def check_hook(name: str, *, n_layers: int, resid_mid: bool = True, key: str = "hook_point") -> Hook:
    """Parse a hook point's name; raise UserError, with layers or names that exist, if the subject does not have it.

    Args:
        key: the option that names it, for the message.
    """
    names = hook_names(n_layers, resid_mid=resid_mid)
    if name in names:
        return parse_hook(name)
    block = re.match(r"blocks\.(\d+)\.", name)
    if block is not None and int(block[1]) >= n_layers:
        message = f"{key}={name}: the model has {n_layers} layers, allowed are blocks.0 to blocks.{n_layers - 1}"
        if _NAME.fullmatch(name) is None:  # the rest of the name is wrong too
            first_block = [n.removeprefix("blocks.0.") for n in names if n.startswith("blocks.0.")]
            message += f"; the hook points of a block are {', '.join(first_block)}"
        raise UserError(message)
    # either the layer or the kind may be mistyped: suggest names of the same block first
    same_block = [n for n in names if block and n.startswith(block[0])]
    nearest = list(dict.fromkeys(get_close_matches(name, same_block, 3, 0.5) + get_close_matches(name, names, 3, 0.5)))
    raise UserError(f"{key}={name}: no such hook point; nearest are {', '.join(nearest[:3] or names[:3])}")


def sort_hooks(names: Iterable[str]) -> list[str]:
    """Sort hook points by their position in the network."""
    return sorted(names, key=lambda name: parse_hook(name).order)


def later_residuals(name: str, *, n_layers: int) -> list[str]:
    """List the residual hook points after a hook point: each later block's `hook_resid_pre`, and the last `hook_resid_post`.

    These are the default hook points of the downstream loss. The list is empty only for the last `hook_resid_post`.
    """
    hook = check_hook(name, n_layers=n_layers)
    later = [Hook(layer, "resid_pre").name for layer in range(hook.layer + 1, n_layers)]
    if hook.kind == "resid_post" and later:
        later = later[1:]  # the next block's hook_resid_pre is the same tensor
    last = Hook(n_layers - 1, "resid_post")
    return later if hook == last else [*later, last.name]


def check_continuation(hooks: Sequence[str], start: str, ends: Collection[str]) -> None:
    """Raise UserError if `ends` is empty, a hook point is not in `hooks`, or one of `ends` lies before `start`.

    `hooks` are all hook points of the subject in the network's order.
    """
    for name in (start, *ends):
        if name not in hooks:
            raise UserError(f"{name}: no such hook point; there are {', '.join(hooks)}")
    if not ends:
        raise UserError(f"from {start}: no hook point given at which to end")
    if before := [end for end in ends if hooks.index(end) < hooks.index(start)]:
        raise UserError(f"from {start} to {before[0]}: the second lies before the first in the network")
