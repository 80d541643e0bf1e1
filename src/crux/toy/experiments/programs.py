"""From the configuration to programs: which instances, on which data."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.schema import Config
from crux.toy.features import FeatureDistribution, Together
from crux.toy.options import Toy
from crux.toy.program import Program, grid
from crux.toy.superposition import Kind


def settings(config: Config) -> Toy:
    """The experiment's own keys."""
    assert config.toy is not None, "the experiment's file sets them"
    return config.toy


def sized(config: Config) -> list[Config]:
    """The configuration for each of its sizes."""
    toy = settings(config)
    assert toy.sizes is not None, "crux.sae.checks asks for them"
    return [replace(config, toy=replace(toy, n_features=n, n_hidden=m, n_sets=n_sets)) for n, m, n_sets in toy.sizes]


def importances(toy: Toy) -> Float[Tensor, "n_features"]:
    """I_i = importance^i."""
    return torch.tensor(toy.importance) ** torch.arange(toy.n_features)


def uniform(toy: Toy) -> Float[Tensor, "density n_features"]:
    """Each of the densities, the same for all features."""
    return torch.tensor(toy.densities)[:, None].repeat(1, toy.n_features)


def program(
    config: Config,
    *,
    name: str,
    density: Float[Tensor, "density n_features"],
    importance: Float[Tensor, "setting n_features"],
    kind: Kind | None,
    points: int | None,
) -> Program:
    """Instances for every density, seed (running fastest) and importance, of the configuration's size.

    Args:
        importance: the instances that see the same data.
        kind: another model than the configuration's; None: that one.
        points: size of a finite training set; None: fresh data.
    """
    toy = settings(config)
    seeds, densities = grid(seeds=range(config.seed, config.seed + toy.seeds), density=density)
    return Program(
        name=name,
        kind=kind or Kind(toy.kind.value),
        n_hidden=toy.n_hidden,
        features=FeatureDistribution(Together(toy.together.value), toy.n_sets, toy.signed, toy.unit),
        seeds=seeds,
        density=densities,
        importance=importance.expand(len(seeds), -1, -1),
        points=points,
    )


def over_densities(config: Config) -> Program:
    """One instance for each of the configuration's densities and each seed."""
    toy = settings(config)
    return program(
        config, name="model", density=uniform(toy), importance=importances(toy)[None], kind=None, points=None
    )


def tiled(whole: Program, *, tile: int) -> list[Program]:
    """The program in pieces of at most `tile` streams; an instance in a piece is what it is in the whole."""
    n = len(whole.seeds)
    if n <= tile:
        return [whole]
    pieces = [slice(start, min(start + tile, n)) for start in range(0, n, tile)]
    return [
        whole._replace(
            name=f"{whole.name}_{i:03d}",
            seeds=whole.seeds[piece],
            density=whole.density[piece],
            importance=whole.importance[piece],
        )
        for i, piece in enumerate(pieces)
    ]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """What the pieces of a program hold, as the whole's."""
    return torch.cat(list(parts))
