"""A small SAE that the tests of `experiment=read` share."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trained(run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a small TopK SAE."""
    place = tmp_path_factory.mktemp("trained")
    words = ("loss=local", "sae=topk", "sae.n_latents=64", "sae.k=8", "evaluation.latents=0", "tracking=none")
    assert run_crux(*short_job, *words, f"output_dir={place}") == 0
    (folder,) = (place / "runs").iterdir()
    return folder
