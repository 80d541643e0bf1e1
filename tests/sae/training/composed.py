"""The configuration that a command line makes, without running it."""

import os
from pathlib import Path

import hydra
from omegaconf import OmegaConf

from crux.config import schema
from crux.config.schema import Config

ROOT = Path(__file__).resolve().parents[3]


def composed(*overrides: str) -> Config:
    """conf/ with these overrides."""
    os.environ.setdefault("CRUX_ROOT", str(ROOT))
    os.environ.setdefault("CRUX_OUTPUTS", "outputs")
    schema.register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_object(hydra.compose("config", list(overrides)))
    assert isinstance(config, Config)
    return config
