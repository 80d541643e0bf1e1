"""Compose the configuration of a command line without running it."""

from pathlib import Path

import hydra
from omegaconf import OmegaConf

from crux.config.registry import register
from crux.sae.options import SaeJob

ROOT = Path(__file__).resolve().parents[2]


def compose_sae_job(*overrides: str) -> SaeJob:
    """Return the configuration that these overrides give, not yet checked."""
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_object(hydra.compose("config", list(overrides)))
    assert isinstance(config, SaeJob)
    return config
