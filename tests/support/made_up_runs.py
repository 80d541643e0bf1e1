"""Run folders with made-up metrics, as finished runs leave them."""

from pathlib import Path
from typing import Any
from zlib import crc32

from crux.runs.run_folder import RunFolder


def write_made_up_run(
    sweep: Path, *, loss: str, l0: float, ce: float, sparsity: float = 1.0, seed: int = 0, k: int | None = None, layer: int = 6,
    sae: str = "relu", metrics: dict[str, float] | None = None, more: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the folder of a finished run with these metrics; `more` adds sections to its configuration."""
    config = {
        "loss": {"name": loss}, "sparsity": sparsity, "seed": seed, "hook_point": f"blocks.{layer}.hook_resid_pre",
        "sae": {"name": sae, "k": k},
    } | (more or {})  # fmt: skip
    # the folder's name has everything in which the runs of a test differ
    folder = RunFolder.create(sweep / f"{loss},{sae},{layer},{sparsity},{k},{seed},{crc32(str(more).encode())}", config)
    others = {f"final/{name}": 0.5 for name in ("kl", "explained_variance", "loss_recovered_mean", "norm_ratio")}
    folder.write_metrics(others | {"final/l0": l0, "final/ce_increase": ce} | (metrics or {}))
    folder.finish()
