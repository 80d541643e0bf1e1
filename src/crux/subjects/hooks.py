"""The table of hook points, by TransformerLens's names. Standard library only: a typo fails before torch loads.

Inside a block the hooks follow one another as
`hook_resid_pre → attn.hook_z → hook_attn_out → hook_resid_mid → hook_mlp_out → hook_resid_post`; blocks whose attention
and MLP read the same residual (parallel GPT-NeoX) have no `hook_resid_mid`. `attn.hook_z`, the input of the attention's
output projection, is taken with its heads side by side: n_heads · d_head wide, where TransformerLens gives heads a
dimension of their own. What is spliced in at `hook_resid_mid` stands in the residual stream, skip connection included,
as in HookedTransformer; TransformerBridge 4.3 changes the MLP's input only.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from crux.config.errors import UserError

KINDS = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
FINAL = "ln_final.hook_normalized"
"""Where the residual stream has passed the final norm: what the unembedding reads."""
_SPELT = {kind: "attn.hook_z" if kind == "z" else f"hook_{kind}" for kind in KINDS}
_NAME = re.compile(r"blocks\.(\d+)\.(" + "|".join(map(re.escape, _SPELT.values())) + ")")


class Hook(NamedTuple):
    """A hook point, as the pair that its name spells; compare places by `order`."""

    layer: int
    """Index of the block, from 0."""
    kind: str
    """One of `KINDS`."""

    @property
    def name(self) -> str:
        """TransformerLens's name, such as `blocks.6.hook_resid_pre`."""
        return f"blocks.{self.layer}.{_SPELT[self.kind]}"

    @property
    def order(self) -> tuple[int, int]:
        """Where the hook lies along the network: earlier hooks compare as smaller."""
        return self.layer, KINDS.index(self.kind)


def hook_names(n_layers: int, *, resid_mid: bool = True) -> list[str]:
    """Every hook point of a subject with `n_layers` blocks, in the network's order."""
    kinds = [k for k in KINDS if resid_mid or k != "resid_mid"]
    return [Hook(layer, kind).name for layer in range(n_layers) for kind in kinds]


def parse_hook(name: str) -> Hook:
    """Layer and kind of a hook point's name; UserError where the name is not one of the table's form."""
    if (found := _NAME.fullmatch(name)) is None:
        raise UserError(
            f"hook_point={name}: no such hook point; allowed are blocks.<layer>.<hook>, <hook> one of "
            f"{', '.join(_SPELT.values())}"
        )
    return Hook(int(found[1]), found[2].rpartition("hook_")[2])


def check_layer(layer: int, *, n_layers: int) -> None:
    """UserError where the subject has no such layer."""
    if not 0 <= layer < n_layers:
        raise UserError(f"layer={layer}: the model has {n_layers} layers, allowed are 0 to {n_layers - 1}")


def check_hook(name: str, *, n_layers: int, resid_mid: bool = True) -> Hook:
    """The hook point of that name; UserError with the nearest names where the subject does not have it."""
    names = hook_names(n_layers, resid_mid=resid_mid)
    if name in names:
        return parse_hook(name)
    if (found := _NAME.fullmatch(name)) is not None and int(found[1]) >= n_layers:
        raise UserError(
            f"hook_point={name}: the model has {n_layers} layers, allowed are blocks.0 to blocks.{n_layers - 1}"
        )
    # the layer may be right and the kind wrong, or the other way round: the same block's names come first
    block = re.match(r"blocks\.\d+\.", name)
    own = [n for n in names if block and n.startswith(block[0])]
    nearest = list(dict.fromkeys(get_close_matches(name, own, 3, 0.5) + get_close_matches(name, names, 3, 0.5)))
    raise UserError(f"hook_point={name}: no such hook point; nearest are {', '.join(nearest[:3] or names[:3])}")


def in_order(names: Iterable[str]) -> list[str]:
    """The hook points sorted along the network."""
    return sorted(names, key=lambda name: parse_hook(name).order)


def later_residuals(name: str, *, n_layers: int) -> list[str]:
    """The residual hooks behind a hook point: each later block's `hook_resid_pre`, and the last `hook_resid_post`.

    These are the default positions of the downstream loss. The list is empty at the last `hook_resid_post` only.
    """
    here = check_hook(name, n_layers=n_layers)
    later = [Hook(layer, "resid_pre").name for layer in range(here.layer + 1, n_layers)]
    if here.kind == "resid_post" and later:
        later = later[1:]  # the next block's hook_resid_pre is the same tensor
    last = Hook(n_layers - 1, "resid_post")
    return later if here == last else [*later, last.name]


def check_onward(hooks: Sequence[str], start: str, ends: Collection[str]) -> None:
    """UserError where a network with these hook points has no such way: a hook it lacks, none to go to, or one before the start."""
    for name in (start, *ends):
        if name not in hooks:
            raise UserError(f"{name}: no such hook point; there are {', '.join(hooks)}")
    if not ends:
        raise UserError(f"from {start}: no hook point given to go to")
    if before := [end for end in ends if hooks.index(end) < hooks.index(start)]:
        raise UserError(f"from {start} to {before[0]}: the second lies before the first in the network")
