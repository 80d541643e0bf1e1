"""Build programs from options: the instances to train and the data that they see."""

import torch
from jaxtyping import Float
from torch import Tensor

from crux.toy.features import FeatureDistribution
from crux.toy.options import Kind, OneSize, Size, Toy
from crux.toy.program import Program, build_streams


def feature_importances(toy: Toy, n_features: int) -> Float[Tensor, "n_features"]:
    """Return I_i = importance^i."""
    return torch.tensor(toy.importance) ** torch.arange(n_features)


def uniform_densities(toy: Toy, n_features: int) -> Float[Tensor, "density n_features"]:
    """Return one row per density of the options, with the same value for all features."""
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
    """Return a program with one instance per density, seed and importance, on fresh data.

    The streams are ordered by density, then by seed; instances that differ only in their importance see the same data.

    Args:
        seed: the first of the consecutive seeds.
        importance: I of the features, one row per setting.
    """
    seeds, densities = build_streams(seeds=range(seed, seed + toy.seeds), density=density)
    return Program(
        name=name,
        kind=kind,
        n_hidden=size.n_hidden,
        distribution=FeatureDistribution(toy.together, size.n_sets, toy.signed),
        seeds=seeds,
        density=densities,
        importance=importance.expand(len(seeds), -1, -1),
        points=None,
    )


def build_program_of_size(toy: Toy, size: Size, *, seed: int, name: str) -> Program:
    """Return a program with one instance per density of the options and per seed."""
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
    """Return the program of an experiment that trains a single one; it is named `model`."""
    return build_program_of_size(toy, toy.size, seed=seed, name="model")


def split_into_tiles(program: Program, *, tile: int) -> list[Program]:
    """Split the program into pieces of at most `tile` streams; the instances are trained exactly as in the whole program."""
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
