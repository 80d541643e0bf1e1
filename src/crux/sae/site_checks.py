"""Checks of the hook points of a run's SAEs, and of the later ones that its loss compares. Torch-free."""

from collections.abc import Sequence
from itertools import pairwise

from crux.config.errors import UserError
from crux.sae.architectures.options import SaeOptions
from crux.sae.losses.options import LossOptions
from crux.sae.options import SaeJob
from crux.subjects.hooks import check_hook, check_layer, later_residuals, parse_hook
from crux.subjects.shape import Shape

HookPair = tuple[str, str]
"""The hook points that an SAE reads and writes."""


def check_sites(job: SaeJob, shape: Shape | None, *, hook_given: bool) -> None:
    """Check that the hook points exist and are in order, and that the dictionaries are large enough.

    Args:
        shape: shape of the subject; None if it is not available yet.
        hook_given: whether the user gave `hook_point` instead of `layer`.

    Raises:
        UserError: for the first problem, in one line.
    """
    if shape is not None and job.model.context > shape.n_ctx:
        raise UserError(f"model.context={job.model.context}: the model's context has {shape.n_ctx} tokens")
    n_layers = shape.n_layers if shape is not None else job.model.n_layers
    if n_layers is None:
        return  # a hub model of unknown depth is checked after it has been downloaded
    if not hook_given and job.hook_points is None:
        check_layer(job.layer, n_layers=n_layers)
    for read, write in job.sites:
        for hook, key in (
            (read, "hook_point" if job.hook_points is None else "hook_points"),
            (write, "sae.output_hook"),
        ):
            check_hook(hook, n_layers=n_layers, resid_mid=shape is None or shape.resid_mid, key=key)
    _check_order(job.sites, n_layers)
    if shape is not None:
        width = min(shape.hook_width(parse_hook(read).kind) for read in job.hooks_read)
        check_n_latents(job.sae, width, target_l0=job.target_l0)
    downstream_hooks(job.loss, job.sites, n_layers=n_layers)


def _network_order(hook: str, n_layers: int) -> tuple[int, int]:
    """Return the place of a hook point in the network's order; a block's `hook_resid_post` is the same as the next `hook_resid_pre`."""
    parsed = parse_hook(hook)
    if parsed.kind == "resid_post" and parsed.layer + 1 < n_layers:
        parsed = parsed._replace(layer=parsed.layer + 1, kind="resid_pre")
    return parsed.order


def _check_order(sites: Sequence[HookPair], n_layers: int) -> None:
    """Check that the SAEs are in the network's order, and that a transcoder writes after the hook point that it reads."""
    orders = [_network_order(read, n_layers) for read, _ in sites]
    if any(order >= next_order for order, next_order in pairwise(orders)):
        names = ", ".join(read for read, _ in sites)
        raise UserError(f"hook_points: {names} are out of order; name each once, in the network's order")
    for read, write in sites:
        if write != read and _network_order(write, n_layers) <= _network_order(read, n_layers):
            raise UserError(
                f"sae.output_hook={write}: is not after {read}, which the transcoder reads; "
                "leave it out to reconstruct the activation that is read"
            )


def downstream_hooks(loss: LossOptions, sites: Sequence[HookPair], *, n_layers: int) -> list[str]:
    """Return the later hook points that the loss compares: those in its options, or every later residual; empty if it compares none.

    They come after the hook point that the first SAE writes, and no SAE writes there.

    Raises:
        UserError: if a given hook point is not after the SAE, or no hook point is left.
    """
    written = [write for _, write in sites]
    occupied = [_network_order(hook, n_layers) for hook in written]
    residuals = later_residuals(written[0], n_layers=n_layers)
    available = [hook for hook in residuals if _network_order(hook, n_layers) not in occupied]
    return loss.later_hooks(available, written=written[0])


def check_n_latents(sae: SaeOptions, width: int, *, target_l0: float | None) -> None:
    """Check that a dictionary for activations of this width has latents, and at least as many as are to be active."""
    n_latents = sae.count_latents(width)
    if n_latents < 1:
        raise UserError(
            f"sae.ratio={sae.ratio:g}: gives no latents at {width} dimensions; must be {1 / width:g} or more"
        )
    for key, value in (("sae.k", sae.arguments.get("k")), ("target_l0", target_l0), ("sae.auxk.k", sae.auxk.k)):
        if isinstance(value, int | float) and value > n_latents:
            raise UserError(f"{key}={value:g}: the dictionary has {n_latents} latents")
