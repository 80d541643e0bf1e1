"""A job that trains many SAEs at one hook point on the same tokens: what its runs are, each as if it were trained alone. Torch-free."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from crux.config.errors import UserError
from crux.config.schema import Config

LISTS = {"sparsities": ("relu", "sparsity"), "ks": ("topk", "sae.k")}
"""Key of each list, the architecture that it is for, and the key of one SAE's value."""


def alone(config: Config) -> dict[str, Config]:
    """Each run's configuration, as if it were the only one, by the name of its folder; none where the job is one run."""
    if config.sparsities is not None:
        return {
            f"sparsity={_short(value)}": replace(config, sparsities=None, sparsity=value) for value in config.sparsities
        }
    if config.ks is not None:
        return {f"k={k}": replace(config, ks=None, sae=replace(config.sae, k=k)) for k in config.ks}
    return {}


def _short(value: float) -> str:
    return str(float(value)).removesuffix(".0")


def check_many(config: Config, given: Collection[str]) -> None:
    """The lists fit the rest of the configuration, of which `given` are the keys on the command line.

    Raises:
        UserError: in one line, otherwise.
    """
    lists: Mapping[str, list[float] | list[int] | None] = {"sparsities": config.sparsities, "ks": config.ks}
    asked = [key for key, values in lists.items() if values is not None]
    if not asked:
        return
    for key in asked:
        architecture, single = LISTS[key]
        values = lists[key] or []
        if config.sae.name != architecture:
            other = {"relu": "; give sparsities", "topk": "; give ks"}.get(config.sae.name, ", one run for each value")
            raise UserError(f"{key}: many SAEs at once are for sae={architecture}, not sae={config.sae.name}{other}")
        if not values:
            raise UserError(f"{key}=[]: at least one is needed")
        if len(set(values)) < len(values):
            raise UserError(f"{key}={values}: names a value twice")
        if single in given:
            raise UserError(f"{key} and {single} both given: give one of them")
    if config.trainer.devices != 1:
        raise UserError(f"{asked[0]}: many SAEs at once are trained on one device; trainer=ddp is for one large run")
    if config.target_l0 is not None:
        raise UserError(f"{asked[0]} and target_l0 both given: λ is either one of the list or steered")
    if config.hook_points is not None and len(config.hook_points) > 1:
        raise UserError(f"{asked[0]}: many SAEs at once stand at one hook point, not at {len(config.hook_points)}")
