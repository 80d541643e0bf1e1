"""The jobs of a command line: unions of grids, narrowed unions, and plain products as in Hydra.

A grid is a product: one job per combination of the values of its keys. A named sweep may be a union, the jobs of several grids. A command
line narrows a union if it leaves out some grids, or some values of a key.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import crux.launch.sweep
from crux.config.bounds import check_bounds
from crux.config.folder_name import MAX_NAME_BYTES
from crux.launch.cells import remove_hydra_section
from crux.launch.sweep import SweepJob
from crux.sae.options import SaeJob

SWEEPS = sorted(p.stem for p in (Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
Jobs = Callable[..., list[SweepJob]]


@pytest.fixture
def jobs(run_crux: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Return a function that returns the jobs of a command line without starting them."""

    def compose_jobs(*arguments: str) -> list[SweepJob]:
        found: list[SweepJob] = []

        def collect(jobs: Sequence[SweepJob], **_: object) -> None:
            found.extend(jobs)

        monkeypatch.setattr(crux.launch.sweep, "launch", collect)
        assert run_crux(*arguments, f"output_dir={tmp_path}") == 0
        return found

    return compose_jobs


def select_values(jobs: Sequence[SweepJob], *keys: str) -> list[tuple[str, ...]]:
    """Return the values of some keys in each job, as strings."""
    return [tuple(str(OmegaConf.select(job.config, key)) for key in keys) for job in jobs]


def test_every_grid_of_a_union_is_combined_with_the_values_of_all_other_keys(jobs: Jobs) -> None:
    found = select_values(jobs("sweeps=pareto"), "loss.name", "sparsity", "seed")
    assert len(found) == len(set(found)) == 27  # 3 losses × 3 sparsities × 3 seeds
    assert Counter(loss for loss, _, _ in found) == {"local": 9, "e2e": 9, "e2e_ds": 9}
    assert {s for loss, s, _ in found if loss == "e2e"} == {"1.5", "2.5", "4.5"}
    assert {s for loss, s, _ in found if loss == "local"} == {"5.0", "7.0", "10.0"}


JOBS_PER_LOSS = {
    "sweeps=pareto loss=e2e": {"e2e": 9},
    "sweeps=pareto loss=local,e2e seed=0": {"local": 3, "e2e": 3},
    "sweeps=pareto seed=0,1,2,3,4 loss=local": {"local": 15},
    "sweeps=pareto sparsity=2 seed=0": {"local": 1, "e2e": 1, "e2e_ds": 1},
    "sweeps=pareto sparsity=range(1,4) loss=local": {"local": 9},
    "sweeps=losses loss=fisher": {"fisher": 3},
    "sweeps=losses sae=gradient_topk": {"local": 3, "e2e": 3},
    "sweeps=losses": {"local": 9, "kl_finetune": 3, "fisher": 3, "e2e": 9},
    "sweeps=paper_gpt2": {"local": 6, "e2e": 5, "e2e_ds": 4},
    "sweeps=paper_gpt2 layer=6": {"local": 2, "e2e": 2, "e2e_ds": 1},
    "sweeps=paper_gpt2 layer=2,10 loss=e2e_ds": {"e2e_ds": 3},
    "sweeps=geometry": {"local": 2, "e2e": 2, "e2e_ds": 2},
    "sweeps=layers layer=4": {"local": 1, "e2e": 1, "e2e_ds": 1},
    "-m loss=local,e2e layer=2,4": {"local": 2, "e2e": 2},
    "-m seed=0,0": {"e2e_ds": 1},  # two equal jobs are one
}
"""Number of jobs with each loss, by command line. A key either chooses grids and values of a sweep or replaces the sweep's values."""


LARGE = ("sweeps=losses", "sweeps=paper_gpt2")


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.slow) if line in LARGE else line for line in JOBS_PER_LOSS]
)
def test_the_command_line_narrows_a_sweep_or_replaces_its_values(line: str, jobs: Jobs) -> None:
    found = jobs(*line.split())
    assert Counter(loss for (loss,) in select_values(found, "loss.name")) == JOBS_PER_LOSS[line]
    assert len({job.folder.path for job in found}) == len(found)  # no two jobs share a folder


@pytest.mark.parametrize(
    "name", [name if name in ("layers", "seeds") else pytest.param(name, marks=pytest.mark.slow) for name in SWEEPS]
)
def test_every_job_of_every_named_sweep_is_accepted(name: str, jobs: Jobs, tmp_path: Path) -> None:
    for job in jobs(f"sweeps={name}"):
        config = OmegaConf.to_object(remove_hydra_section(job.config))
        assert isinstance(config, SaeJob)
        check_bounds(config, "")
        given_keys = {override.partition("=")[0] for override in job.overrides}
        config.check(given_keys)
        assert (config.sweep_name, job.folder.path.parent) == (name, tmp_path / "sweeps" / name)


@pytest.mark.slow
def test_the_papers_grid_is_its_published_runs(jobs: Jobs) -> None:
    """Braun et al., tables 2 and 3: λ by layer and loss."""
    found = select_values(jobs("sweeps=paper_gpt2"), "layer", "loss.name", "sparsity", "loss.downstream", "model.name")
    assert sorted(found) == sorted(
        (layer, loss, sparsity, downstream, "gpt2")
        for layer, loss, sparsities, downstream in [
            ("2", "local", ["0.8", "4.0"], "None"), ("2", "e2e", ["0.5", "1.5"], "None"), ("2", "e2e_ds", ["10.0", "35.0"], "2.5"),
            ("6", "local", ["4.0", "6.0"], "None"), ("6", "e2e", ["3.0", "1.5"], "None"), ("6", "e2e_ds", ["50.0"], "2.5"),
            ("10", "local", ["6.0", "10.0"], "None"), ("10", "e2e", ["1.5"], "None"), ("10", "e2e_ds", ["1.75"], "0.05"),
        ]
        for sparsity in sparsities
    )  # fmt: skip


def test_a_grid_without_a_name_is_named_by_its_command_line(jobs: Jobs, tmp_path: Path) -> None:
    """Neither the order of the overrides nor those that a resumed run may change, such as `tracking`, are part of the name."""
    (one,) = {job.folder.path.parent for job in jobs("-m", "loss=local,e2e", "seed=0")}
    (same,) = {job.folder.path.parent for job in jobs("seed=0", "loss=local,e2e", "-m", "tracking=none")}
    (other,) = {job.folder.path.parent for job in jobs("-m", "loss=local,e2e", "seed=1")}
    assert one == same == tmp_path / "sweeps" / "loss=local,e2e_seed=0"
    assert other != one
    # a name that is too long for a folder is shortened, and still differs if the command lines do
    long = [f"loss.downstream_hooks=[{','.join(f'blocks.{k}.hook_resid_pre' for k in range(1, 8))}]", "layer=0"]
    names = [{job.folder.path.parent.name for job in jobs("-m", *long, f"seed={seed}")} for seed in (1, 2)]
    assert names[0] != names[1]
    assert all(len(name.encode()) <= MAX_NAME_BYTES for (name,) in names)
    (mine,) = {job.folder.path.parent.name for job in jobs("-m", "seed=0,1", "sweep_name=mine")}
    assert mine == "mine"


def test_the_folder_of_a_job_does_not_depend_on_the_process_that_runs_it(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A job that runs in another process, with another environment and working directory, finds the folder of its sweep."""
    (job, *_) = jobs("-m", "seed=0,1", "sweep_name=its")
    monkeypatch.setenv("CRUX_OUTPUTS", "elsewhere")  # the values below are resolved only now
    monkeypatch.chdir(tmp_path)
    assert OmegaConf.select(job.config, "output_dir") == str(tmp_path)
    assert job.folder.path == tmp_path / "sweeps" / "its" / "seed=0"


def test_a_sweep_without_grids_is_a_plain_product(jobs: Jobs) -> None:
    """As with Hydra's own sweeper, `hydra.sweeper.params` alone are enough."""
    sweep = yaml.safe_load((Path(__file__).parents[2] / "sweeps" / "architectures.yaml").read_text("utf-8"))
    assert "grids" not in sweep["hydra"]["sweeper"]
    found = select_values(jobs("sweeps=architectures", "loss=e2e"), "sae.name", "target_l0")
    assert len(found) == 8
    assert ("topk", "None") in found
    assert ("relu", "32.0") in found
