"""Programs from options: which instances, on which data."""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.toy.features import FeatureDistribution
from crux.toy.options import Kind, OneSize, Size, Toy
from crux.toy.program import Program, grid


def feature_importances(toy: Toy, n_features: int) -> Float[Tensor, "n_features"]:
    """Return I_i = importance^i."""
    return torch.tensor(toy.importance) ** torch.arange(n_features)


def uniform_densities(toy: Toy, n_features: int) -> Float[Tensor, "density n_features"]:
    """Return each of the densities, the same for all features."""
    return torch.tensor(toy.densities)[:, None].repeat(1, n_features)


def build_program(
    toy: Toy,
    size: Size,
    *,
    seed: int,
    name: str,
    kind: Kind,
    density: Float[Tensor, "density n_features"],
    importance: Float[Tensor, "setting n_features"],
) -> Program:
    """Return a program with an instance for every density, seed (running fastest) and importance, on fresh data.

    Args:
        seed: of the first instance; the others follow.
        importance: the instances that see the same data.
    """
    seeds, densities = grid(seeds=range(seed, seed + toy.seeds), density=density)
    return Program(
        name=name,
        kind=kind,
        n_hidden=size.n_hidden,
        features=FeatureDistribution(toy.together, size.n_sets, toy.signed),
        seeds=seeds,
        density=densities,
        importance=importance.expand(len(seeds), -1, -1),
        points=None,
    )


def build_program_of_size(toy: Toy, size: Size, *, seed: int, name: str) -> Program:
    """Return a program with one instance for each of the options' densities and each seed."""
    return build_program(
        toy,
        size,
        seed=seed,
        name=name,
        kind=toy.kind,
        density=uniform_densities(toy, size.n_features),
        importance=feature_importances(toy, size.n_features)[None],
    )


def build_model_program(toy: OneSize, *, seed: int) -> Program:
    """Return the program of experiments that train a single one, called `model`."""
    return build_program_of_size(toy, toy.size, seed=seed, name="model")


def split_into_tiles(program: Program, *, tile: int) -> list[Program]:
    """Return the program in pieces of at most `tile` streams; an instance in a piece is what it is in the whole."""
    n = len(program.seeds)
    if n <= tile:
        return [program]
    pieces = [slice(start, min(start + tile, n)) for start in range(0, n, tile)]
    return [
        program._replace(
            name=f"{program.name}_{i:03d}",
            seeds=program.seeds[piece],
            density=program.density[piece],
            importance=program.importance[piece],
        )
        for i, piece in enumerate(pieces)
    ]
