"""Where crux finds its configuration files: in the checkout, or in the installed package."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]
ROOT = CHECKOUT if (CHECKOUT / "conf" / "config.yaml").exists() else PACKAGE
"""The folder of conf/ and sweeps/."""


def default_outputs() -> str:
    """Return the folder of runs if `output_dir` is not given: $CRUX_OUTPUTS, or outputs/ in the checkout or the current folder."""
    return os.environ.get("CRUX_OUTPUTS") or str((CHECKOUT if ROOT == CHECKOUT else Path.cwd()) / "outputs")
