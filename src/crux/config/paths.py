"""Where crux finds its configuration files: in the checkout, or in the installed package."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]
ROOT = CHECKOUT if (CHECKOUT / "conf" / "config.yaml").exists() else PACKAGE
"""The folder of conf/ and sweeps/."""
