"""The folders of crux's configuration files: the checkout's, or the installed package's."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]
ROOT = CHECKOUT if (CHECKOUT / "conf" / "config.yaml").exists() else PACKAGE
"""The folder of conf/ and sweeps/."""


def default_outputs() -> str:
    """Return the folder of runs if `output_dir` is not given: $CRUX_OUTPUTS, or outputs/ in the checkout or the current folder."""
    return os.environ.get("CRUX_OUTPUTS") or str((CHECKOUT if ROOT == CHECKOUT else Path.cwd()) / "outputs")
