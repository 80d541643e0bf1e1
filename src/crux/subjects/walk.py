"""One way through the network's blocks that shows every hook point and takes back what is to stand there."""

from collections.abc import Generator
from typing import NamedTuple

from torch import Tensor

from crux.subjects.anatomy import Anatomy, Block
from crux.subjects.hooks import Hook


class Step(NamedTuple):
    """A hook point that the walk has come to."""

    name: str
    """TransformerLens's name."""
    value: Tensor
    """The activation, batch × pos × its width."""
    carried: tuple[Tensor, ...]
    """What the block still needs behind the hook besides the activation: the residuals it will be added to."""


def walk(
    parts: Anatomy,
    arguments: list[dict[str, object]],
    *,
    start: Hook,
    value: Tensor,
    carried: tuple[Tensor, ...],
) -> Generator[Step, Tensor, None]:
    """Walks the network from hook `start`, where the activation is `value`, to the last `hook_resid_post`.

    Yields every hook point on the way and goes on with the activation that is sent back. `arguments` are each block's
    attention's; `carried` is what was yielded with `start` when it was passed before, empty at a residual hook.
    """
    block = _parallel_block if parts.parallel else _sequential_block
    for layer in range(start.layer, len(parts.blocks)):
        at = f"blocks.{layer}."
        value = yield from block(parts.blocks[layer], at, arguments[layer], start.kind, value, carried)
        start, carried = Hook(layer + 1, "resid_pre"), ()


def _attention(
    part: Block, at: str, arguments: dict[str, object], start: str, value: Tensor, resid: Tensor
) -> Generator[Step, Tensor, tuple[Tensor, Tensor]]:
    """The attention of a block, from the hook kind `start` on: returns its output, and the residual that it read."""
    if start == "resid_pre":
        resid = yield Step(at + "hook_resid_pre", value, ())
        value = part.attn(part.norm1(resid), **arguments)[0]
    if start in ("resid_pre", "z"):
        z = yield Step(at + "attn.hook_z", value, (resid,))
        value = part.out(z)
    return value, resid


def _sequential_block(
    part: Block, at: str, arguments: dict[str, object], start: str, value: Tensor, carried: tuple[Tensor, ...]
) -> Generator[Step, Tensor, Tensor]:
    """One block, from the hook kind `start` on: attention adds to the residual, then the MLP adds to the sum."""
    resid = carried[0] if carried else value
    value, resid = yield from _attention(part, at, arguments, start, value, resid)
    if start in ("resid_pre", "z"):
        value = value if part.post1 is None else part.post1(value)
    if start in ("resid_pre", "z", "attn_out"):
        attn_out = yield Step(at + "hook_attn_out", value, (resid,))
        value = attn_out + resid
    if start not in ("mlp_out", "resid_post"):
        resid = yield Step(at + "hook_resid_mid", value, ())
        value = part.mlp(part.norm2(resid))
        value = value if part.post2 is None else part.post2(value)
    if start != "resid_post":
        mlp_out = yield Step(at + "hook_mlp_out", value, (resid,))
        value = resid + mlp_out
    return (yield Step(at + "hook_resid_post", value, ()))


def _parallel_block(
    part: Block, at: str, arguments: dict[str, object], start: str, value: Tensor, carried: tuple[Tensor, ...]
) -> Generator[Step, Tensor, Tensor]:
    """One block whose attention and MLP both read the residual that enters it."""
    resid, *others = carried or (value,)
    value, resid = yield from _attention(part, at, arguments, start, value, resid)
    if start in ("resid_pre", "z", "attn_out"):
        attn_out = yield Step(at + "hook_attn_out", value, (resid,))
        value, others = part.mlp(part.norm2(resid)), [attn_out]
    if start != "resid_post":
        mlp_out = yield Step(at + "hook_mlp_out", value, (resid, *others))
        value = mlp_out + others[0] + resid
    return (yield Step(at + "hook_resid_post", value, ()))
