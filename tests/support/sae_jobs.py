"""The configuration that a command line makes, without running it."""

from pathlib import Path

import hydra
from omegaconf import OmegaConf

from crux.config.registry import register
from crux.sae.options import SaeJob

ROOT = Path(__file__).resolve().parents[2]


def composed(*overrides: str) -> SaeJob:
    """conf/ with these overrides."""
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_object(hydra.compose("config", list(overrides)))
    assert isinstance(config, SaeJob)
    return config
