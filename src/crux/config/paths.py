"""The folders of crux's configuration files, in the checkout or in the installed package."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]
ROOT = CHECKOUT if (CHECKOUT / "conf" / "config.yaml").exists() else PACKAGE
"""The folder of conf/ and sweeps/."""


def default_outputs() -> str:
    """Return the default of `output_dir`: $CRUX_OUTPUTS, or outputs/ in the checkout or in the current folder."""
    return os.environ.get("CRUX_OUTPUTS") or str((CHECKOUT if ROOT == CHECKOUT else Path.cwd()) / "outputs")
