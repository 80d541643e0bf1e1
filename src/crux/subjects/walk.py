"""A generator that runs the network's blocks, yields the activation at every hook point and accepts a replacement."""

from collections.abc import Generator
from typing import NamedTuple

from torch import Tensor

from crux.subjects.anatomy import Anatomy, BlockParts
from crux.subjects.hooks import Hook


class HookStep(NamedTuple):
    """The activation at one hook point, as `walk` yields it."""

    name: str
    """TransformerLens name of the hook point."""
    value: Tensor
    """The activation, [batch, pos, width]."""
    carried: tuple[Tensor, ...]
    """The other tensors that the rest of the block needs: the residuals to which its output is added."""


def walk(
    parts: Anatomy,
    arguments: list[dict[str, object]],
    *,
    start: Hook,
    value: Tensor,
    carried: tuple[Tensor, ...],
) -> Generator[HookStep, Tensor, None]:
    """Run the network from hook point `start`, with activation `value`, to the last `hook_resid_post`.

    Yields every hook point on the way and continues with the activation that is sent back. `arguments` are the keyword
    arguments of each block's attention. `carried` is the tuple that an earlier walk yielded at `start`; it is empty at a
    hook point of the residual stream.
    """
    run_block = _run_parallel_block if parts.parallel else _run_sequential_block
    for layer in range(start.layer, len(parts.blocks)):
        prefix = f"blocks.{layer}."
        value = yield from run_block(parts.blocks[layer], prefix, arguments[layer], start.kind, value, carried)
        start, carried = Hook(layer + 1, "resid_pre"), ()


def _run_attention(
    part: BlockParts, prefix: str, arguments: dict[str, object], start: str, value: Tensor, resid: Tensor
) -> Generator[HookStep, Tensor, tuple[Tensor, Tensor]]:
    """Run the attention of a block from the hook kind `start` on; return its output and the residual that it reads."""
    if start == "resid_pre":
        resid = yield HookStep(prefix + "hook_resid_pre", value, ())
        value = part.attn(part.norm1(resid), **arguments)[0]
    if start in ("resid_pre", "z"):
        z = yield HookStep(prefix + "attn.hook_z", value, (resid,))
        value = part.out(z)
    return value, resid


def _run_sequential_block(
    part: BlockParts, prefix: str, arguments: dict[str, object], start: str, value: Tensor, carried: tuple[Tensor, ...]
) -> Generator[HookStep, Tensor, Tensor]:
    """Run a block from the hook kind `start` on: attention adds to the residual, then the MLP adds to the sum."""
    resid = carried[0] if carried else value
    value, resid = yield from _run_attention(part, prefix, arguments, start, value, resid)
    if start in ("resid_pre", "z"):
        value = value if part.post1 is None else part.post1(value)
    if start in ("resid_pre", "z", "attn_out"):
        attn_out = yield HookStep(prefix + "hook_attn_out", value, (resid,))
        value = attn_out + resid
    if start not in ("mlp_out", "resid_post"):
        resid = yield HookStep(prefix + "hook_resid_mid", value, ())
        value = part.mlp(part.norm2(resid))
        value = value if part.post2 is None else part.post2(value)
    if start != "resid_post":
        mlp_out = yield HookStep(prefix + "hook_mlp_out", value, (resid,))
        value = resid + mlp_out
    return (yield HookStep(prefix + "hook_resid_post", value, ()))


def _run_parallel_block(
    part: BlockParts, prefix: str, arguments: dict[str, object], start: str, value: Tensor, carried: tuple[Tensor, ...]
) -> Generator[HookStep, Tensor, Tensor]:
    """Run a block whose attention and MLP both read the residual that enters it, from the hook kind `start` on."""
    resid, *others = carried or (value,)  # `others` is the attention's output, if the walk starts at hook_mlp_out
    value, resid = yield from _run_attention(part, prefix, arguments, start, value, resid)
    if start in ("resid_pre", "z", "attn_out"):
        attn_out = yield HookStep(prefix + "hook_attn_out", value, (resid,))
        value, others = part.mlp(part.norm2(resid)), [attn_out]
    if start != "resid_post":
        mlp_out = yield HookStep(prefix + "hook_mlp_out", value, (resid, *others))
        value = mlp_out + others[0] + resid
    return (yield HookStep(prefix + "hook_resid_post", value, ()))
