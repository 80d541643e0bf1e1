"""Dictionaries in a plane: the first two principal components, and UMAP, which needs the extra `umap`.

A plane shows less separation than there is: `measure_mixing` gives the numbers, in the space and in the plane.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError

View = Literal["pca", "umap"]
MIN_POINTS_FOR_UMAP = 16
"""UMAP compares each point with 15 others."""


@torch.no_grad()
def project_pca(decoders: Sequence[Float[Tensor, "_n d"]]) -> list[Float[np.ndarray, "_n 2"]]:
    """Return the coordinates of unit rows along the first two principal components of the joint dictionary, centred.

    The sign of a component is fixed: the entry of its axis with the largest absolute value is positive.

    Raises:
        UserError: if the directions have less than two dimensions.
    """
    joint = torch.cat(list(decoders)).double()
    if joint.shape[1] < 2:
        raise UserError("a view in a plane needs directions of two or more dimensions")
    centred = joint - joint.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, [-1, -2]]
    largest = axes.abs().argmax(0)
    axes = axes * axes[largest, [0, 1]].sign()
    return _split(decoders, (centred @ axes).cpu().numpy())


def project_umap(decoders: Sequence[Float[Tensor, "_n d"]], *, seed: int) -> list[Float[np.ndarray, "_n 2"]]:
    """Return the coordinates of the joint dictionary in a UMAP plane: cosine metric, 15 neighbours, min_dist 0.1.

    The first call in a process compiles for minutes. Two calls with the same seed give the same coordinates.

    Raises:
        UserError: if umap-learn is not installed, or there are too few directions.
    """
    check_umap()
    joint = torch.cat(list(decoders)).cpu().numpy()
    if len(joint) < MIN_POINTS_FOR_UMAP:
        raise UserError(f"UMAP needs {MIN_POINTS_FOR_UMAP} or more directions, not {len(joint)}")
    from umap import UMAP  # compiles on import  # pyright: ignore[reportMissingImports]

    umap = UMAP(metric="cosine", n_neighbors=15, min_dist=0.1, random_state=seed, n_jobs=1)
    return _split(decoders, np.asarray(umap.fit_transform(joint), np.float64))


def check_umap() -> None:
    """Raise a UserError if umap-learn is not installed."""
    if find_spec("umap") is None:
        raise UserError("UMAP needs the package umap-learn: pip install 'crux-interp[umap]'; PCA needs no package")


def list_coordinates(
    points: Mapping[str, Float[np.ndarray, "_n 2"]], latents: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Return one row per latent: `sae`, `latent` (its index in the SAE), and the coordinates `x` and `y`."""
    frames = [
        pd.DataFrame({"sae": name, "latent": latents[name], "x": plane[:, 0], "y": plane[:, 1]})
        for name, plane in points.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _split(decoders: Sequence[Tensor], points: np.ndarray) -> list[Float[np.ndarray, "_n 2"]]:
    ends = np.cumsum([len(decoder) for decoder in decoders])[:-1]
    return np.split(points, ends)
