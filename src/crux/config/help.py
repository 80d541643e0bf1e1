"""The help page of the command line: what there is to choose, and what every key is set to."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from crux.config.messages import options
from crux.config.paths import ROOT
from crux.config.registry import plugin_folders

HEAD = """\
crux finds and evaluates the features that a neural network actually uses.

  python src/main.py loss=e2e_ds layer=6        train an end-to-end SAE on the packaged model, evaluate it, compare it in MLflow
  python src/main.py -m loss=local,e2e layer=2,4,6                 a grid; the same command continues it
  python src/main.py sweeps=pareto                                 a named grid
  python src/main.py experiment=toy/phase_diagram                  an experiment; add --help to see its keys

What can be chosen (group=option):
"""
HIDDEN = ("job",)
"""Groups whose options experiments choose."""


def help_page(overrides: Sequence[str]) -> str:
    """Return the page: the options of every group, and the keys of the job that these overrides compose."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    choices = [f"  {group}: {', '.join(options(group))}" for group in _groups()]
    keys = OmegaConf.to_yaml(config).rstrip().splitlines()
    title = "What can be set (section.key=value), and the values of this job:"
    return "\n".join([HEAD.rstrip(), *choices, "", title, *(f"  {line}" for line in keys)])


def _groups() -> Iterator[str]:
    places: list[Path] = [ROOT / "conf", *plugin_folders()]
    names = {folder.name for place in places for folder in place.iterdir() if folder.is_dir()} - {"hydra", *HIDDEN}
    yield from sorted({*names, "sweeps", "hydra/launcher"})
