"""Where a run's SAEs stand in the subject: hook points read and written, and the later ones that a loss compares. Torch-free."""

from itertools import pairwise

from crux.config.errors import UserError
from crux.config.schema import Config
from crux.subjects.hooks import check_hook, check_layer, later_residuals, parse_hook
from crux.subjects.shape import Shape


def places(config: Config) -> list[tuple[str, str]]:
    """What each SAE of the run reads and writes, by hook point, in the network's order."""
    hooks = config.hook_points if config.hook_points is not None else [config.hook_point]
    return [(hook, config.sae.output_hook or hook) for hook in hooks]


def check_places(config: Config, shape: Shape | None, *, hook_given: bool) -> None:
    """Every hook point exists, in an order that makes sense, and its dictionary is large enough.

    Args:
        shape: of the subject; None where it is not there yet.
        hook_given: whether hook_point was given, and does not follow `layer`.

    Raises:
        UserError: in one line, otherwise.
    """
    if shape is not None and config.model.context > shape.n_ctx:
        raise UserError(f"model.context={config.model.context}: the model's context has {shape.n_ctx} tokens")
    n_layers = shape.n_layers if shape is not None else config.model.n_layers
    if n_layers is None:
        return  # a hub model of unknown depth: checked once it is there
    if not hook_given and config.hook_points is None:
        check_layer(config.layer, n_layers=n_layers)
    for read, write in places(config):
        for hook in (read, write):
            check_hook(hook, n_layers=n_layers, resid_mid=shape is None or shape.resid_mid)
    _order(config, n_layers)
    if shape is not None:
        _dictionary(config, shape)
    downstream_hooks(config, n_layers)


def _place(hook: str, n_layers: int) -> tuple[int, int]:
    """Where a hook point lies along the network; a block's `hook_resid_post` is the next one's `hook_resid_pre`."""
    found = parse_hook(hook)
    if found.kind == "resid_post" and found.layer + 1 < n_layers:
        found = found._replace(layer=found.layer + 1, kind="resid_pre")
    return found.order


def _order(config: Config, n_layers: int) -> None:
    """Hook points follow the network, and a transcoder writes behind what it reads."""
    hooks, output = config.hook_points, config.sae.output_hook
    if hooks is not None:
        if not hooks:
            raise UserError("hook_points=[]: at least one is needed")
        orders = [_place(hook, n_layers) for hook in hooks]
        if any(a >= b for a, b in pairwise(orders)):
            raise UserError(f"hook_points: {', '.join(hooks)} are out of order; name each once, in the network's order")
        if output is not None:
            raise UserError("sae.output_hook goes with one hook_point, not with hook_points")
    if output is not None and _place(output, n_layers) <= _place(config.hook_point, n_layers):
        raise UserError(
            f"sae.output_hook={output}: does not lie behind {config.hook_point}, which a transcoder reads; "
            "leave it out to reconstruct what is read"
        )


def downstream_hooks(config: Config, n_layers: int) -> list[str]:
    """The later positions that the loss compares: those given, or every later residual; none where it compares none.

    Later than the first SAE's output, and not at another SAE's.

    Raises:
        UserError: where a position does not lie behind the hook point, or none is left.
    """
    if config.loss.downstream == 0:
        return []
    written = [write for _, write in places(config)]
    taken = [_place(hook, n_layers) for hook in written]
    later = [hook for hook in later_residuals(written[0], n_layers=n_layers) if _place(hook, n_layers) not in taken]
    hooks = later if config.loss.downstream_hooks is None else config.loss.downstream_hooks
    for hook in hooks:
        if hook not in later:
            allowed = ", ".join(later) or "none"
            raise UserError(
                f"loss.downstream_hooks: {hook} is not a residual behind {written[0]}; allowed are {allowed}"
            )
    if not hooks:
        raise UserError(
            f"loss={config.loss.name}: no later residual is left behind {written[0]} to compare; allowed are "
            "earlier hook points, or loss=local and loss=e2e"
        )
    return hooks


def _dictionary(config: Config, shape: Shape) -> None:
    """Every dictionary has latents, and as many as are asked to fire."""
    ratio, width = config.sae.ratio, min(shape.hook_width(parse_hook(read).kind) for read, _ in places(config))
    n_latents = config.sae.n_latents if config.sae.n_latents is not None else int((ratio or 0) * width)
    if n_latents < 1:
        raise UserError(f"sae.ratio={ratio:g}: gives no latents at d_model {width}; must be {1 / width:g} or more")
    for key, value in (("sae.k", config.sae.k), ("target_l0", config.target_l0), ("sae.auxk.k", config.sae.auxk.k)):
        if value is not None and value > n_latents:
            raise UserError(f"{key}={value:g}: the dictionary has {n_latents} latents")
