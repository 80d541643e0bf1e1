"""Hydra's sweeper for crux: unions of grids, and a sweep whose state is on disk. Hydra looks for plugins only in this package.

A grid gives values to some keys; its jobs are the product of these values, one job per combination. A sweep is the union of `grids`: the
jobs of all of them, each combined with the values in `params` and on the command line. Without `grids`, it is the product of `params` and
the command line. A command line narrows a sweep if it leaves out some of its grids (`narrow_grids`).
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class GridsConf:
    """Schema of `hydra.sweeper`."""

    _target_: str = "hydra_plugins.crux_grids.GridSweeper"
    max_batch_size: int | None = None
    """Maximum number of jobs that are passed to the launcher at once; null: all."""
    params: dict[str, Any] = field(default_factory=dict)
    """Keys and values that are added to every grid; the values are written as on a command line (`5,7,10`)."""
    grids: list[dict[str, Any]] = field(default_factory=list)
    """The keys and values of each grid, written in the same way."""


ConfigStore.instance().store(group="hydra/sweeper", name="grids", node=GridsConf, provider="crux")


class GridSweeper(Sweeper):
    """A sweeper that composes the jobs of a sweep; `crux.launch.sweep` starts those that are not done."""

    def __init__(
        self, max_batch_size: int | None, params: Mapping[str, Any], grids: Sequence[Mapping[str, Any]]
    ) -> None:
        self.max_batch_size, self.params, self.grids = max_batch_size, dict(params), [dict(grid) for grid in grids]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        # imported here, because Hydra imports every plugin on every start
        from crux.config.command_line import find_repeated
        from crux.config.errors import UserError
        from crux.config.messages import explain_composition_error
        from crux.config.progress import track
        from crux.launch.cells import check_cell, check_count
        from crux.launch.on_slurm import check_queue
        from crux.launch.sweep import SweepJob, launch, make_common_overrides

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        launcher, loader = self.launcher, self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        lines = [*_to_overrides(self.params), *arguments]
        given = parser.parse_overrides(lines)
        common = make_common_overrides(self.config, lines)
        # in the sweep's own configuration, where Hydra's own launcher finds the sweep's folder, and below in the command line of every job
        for override in parser.parse_overrides(common):
            OmegaConf.update(self.config, override.key_or_group, override.value())
        choices = [key for key in {k for grid in self.grids for k in grid} if loader.get_group_options(key)]
        found: dict[tuple[str, ...], None] = {}  # an ordered set, because the jobs of two grids may be equal
        for grid in narrow_grids(self.grids, parser.parse_overrides(arguments), choices=choices, parser=parser):
            # narrow_grids has already applied the command line to these keys
            grid_keys = {o.get_key_element() for o in parser.parse_overrides(grid)}
            others = [line for line, o in zip(lines, given, strict=True) if o.get_key_element() not in grid_keys]
            overrides = parser.parse_overrides([*grid, *others, *common])
            check_count(prod(len(_list_values(override)) for override in overrides))
            found |= dict.fromkeys(expand_jobs(overrides))

        # every job is composed and checked before any starts, so that errors are reported at once
        jobs: list[SweepJob] = []
        for job in track(list(found), "checking the jobs of the grid"):
            try:
                jobs.append(SweepJob.from_overrides(list(job), loader.load_sweep_config(self.config, list(job))))
            except (HydraException, OmegaConfBaseException) as error:
                raise UserError(explain_composition_error(error, overrides=job)) from error
            check_cell(jobs[-1], jobs=len(found))
        if (line := find_repeated(arguments)) is not None:
            print(f"crux: {line}", file=sys.stderr)
        launch(
            jobs,
            start=lambda todo: launcher.launch([job.overrides for job in todo], initial_job_idx=0),
            at_once=self.max_batch_size,
            before_start=check_queue,  # with every launcher: jobs of an earlier start of this sweep may still be in SLURM's queue
        )


def expand_jobs(overrides: Sequence[Override]) -> Iterator[tuple[str, ...]]:
    """Return the command line of each job, one per combination of the keys' values; the last override of a key counts."""
    values_by_key = {override.get_key_element(): _list_values(override) for override in overrides}
    return product(*([f"{key}={value}" for value in values] for key, values in values_by_key.items()))


def narrow_grids(
    grids: Sequence[Mapping[str, Any]], given: Sequence[Override], *, choices: Sequence[str], parser: OverridesParser
) -> list[list[str]]:
    """Return the overrides that each grid adds to the command line, for those grids that the command line does not leave out.

    A key on the command line that is also a key of the grids either filters or replaces. It filters if it selects a file of conf/
    (`loss=e2e`) or if no grid has several values for it: each grid then keeps only those of its values that are given, and a grid
    that has none of them is left out; a grid without the key takes all the given values. Any other key (`sparsity=2`) replaces: its
    given values are used in place of the grids'.

    Args:
        given: the overrides on the command line.
        choices: the keys of the grids that select a file of conf/.

    Raises:
        HydraException: if no grid remains.
    """
    if not grids:
        return [[]]
    wanted = {o.get_key_element(): _list_values(o) for o in given}
    parsed = [{o.get_key_element(): o for o in parser.parse_overrides(_to_overrides(g))} for g in grids]
    keys = {key for grid in parsed for key in grid}
    filters = {
        key: wanted[key]
        for key in keys & wanted.keys()
        if key in choices or all(len(_list_values(grid[key])) == 1 for grid in parsed if key in grid)
    }
    remaining: list[list[str]] = []
    for grid in parsed:
        kept = {key: _list_values(override) for key, override in grid.items() if key not in wanted or key in filters}
        for key, values in filters.items():
            kept[key] = [value for value in kept.get(key, values) if value in values]
        if all(kept.values()):  # no key has lost all its values
            remaining.append([f"{key}={','.join(values)}" for key, values in kept.items()])
    if not remaining:
        words = "; ".join(
            f"{key}={','.join(values)}; it has {', '.join(sorted({v for g in parsed if key in g for v in _list_values(g[key])}))}"
            for key, values in sorted(filters.items())
        )
        raise HydraException(f"nothing is left of this sweep with {words}")
    return remaining


def _to_overrides(grid: Mapping[str, Any]) -> list[str]:
    """Return the overrides of a grid, as on a command line."""
    return [f"{key}={values}" for key, values in grid.items()]


def _list_values(override: Override) -> list[str]:
    """Return the values that an override gives to its key: one, or several separated by commas, or those of `range(…)`."""
    from crux.config.command_line import (
        list_sweep_values,  # imported here, because Hydra imports every plugin on every start
    )

    return list_sweep_values(override) if override.is_sweep_override() else [override.get_value_element_as_str()]
