"""Every option composes and passes the checks; the paper's experiments have the paper's numbers."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from crux.config.bounds import check_bounds
from crux.config.descriptions import read_field_descriptions, read_option_comment
from crux.config.errors import UserError
from crux.config.registry import options_by_group, register
from crux.config.schema import HubData, Job, Precision, to_plain
from crux.sae.losses.options import E2E, E2EDownstream, Local
from crux.sae.options import SaeJob
from tests.support.experiments import NEED_A_FOLDER

CONF = Path(__file__).resolve().parents[1] / "conf"
OPTIONS = sorted(
    (str(p.parent.relative_to(CONF)).partition("/")[0], p)
    for p in CONF.rglob("*.yaml")
    if p.parent != CONF and not p.is_relative_to(CONF / "hydra") and not p.stem.startswith("_")
)
SWEEPS = sorted((CONF.parent / "sweeps").glob("*.yaml"))


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    """The configuration of a command line, checked."""
    outputs = tmp_path_factory.mktemp("outputs")

    def make(*overrides: str) -> Job:
        register()
        with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(CONF), version_base="1.3"):
            patch.setenv("CRUX_OUTPUTS", str(outputs))
            config = OmegaConf.to_object(compose("config", overrides=list(overrides)))
        assert isinstance(config, Job)
        check_bounds(config, "")
        config.check({override.partition("=")[0] for override in overrides})
        return config

    return make


def sae_job(config: Job) -> SaeJob:
    assert isinstance(config, SaeJob)
    return config


def test_the_defaults_are_the_main_job(composed: Callable[..., Job]) -> None:
    config = sae_job(composed())
    assert (config.model.name, config.loss.name, config.layer) == ("tiny", "e2e_ds", 6)
    assert config.hook_point == "blocks.6.hook_resid_pre"
    assert config.sparsity == config.loss.default_sparsity


@pytest.mark.parametrize(
    "path", [p for group, p in OPTIONS if group != "job"], ids=lambda p: str(p.relative_to(CONF).with_suffix(""))
)
def test_every_option_composes_and_is_accepted(path: Path, composed: Callable[..., Job]) -> None:
    group, _, option = str(path.relative_to(CONF).with_suffix("")).partition("/")
    given = [f"{group}={option}"]
    if (group, option) == ("data", "hub"):
        given.append("data.name=some/dataset")
    if group == "experiment" and option in NEED_A_FOLDER:
        given.append(NEED_A_FOLDER[option].format(CONF, CONF.parent))
        with pytest.raises(UserError, match=r"must be the run folder of a toy experiment|holds no SAE"):
            composed(*given)
        return
    config = composed(*given)
    to_plain(config)
    assert config.run_name()
    assert all(isinstance(value, int | float | str) for value in config.mlflow_params().values())


def test_no_other_file_of_conf_is_named_like_an_experiment() -> None:
    """The values of an experiment are in one file only."""
    experiments = {path.stem for _, path in OPTIONS if "experiment" in path.parts}
    others = {path.stem for group, path in OPTIONS if group not in ("experiment", "model")}
    assert not experiments & others


def kinds_within(kind: type) -> Iterator[type]:
    yield kind
    for inner in get_type_hints(kind).values():
        if isinstance(inner, type) and is_dataclass(inner):
            yield from kinds_within(inner)


def test_every_key_has_a_description() -> None:
    """The string below each key is what `--help` shows."""
    kinds = {
        inner for options in options_by_group().values() for kind in options.values() for inner in kinds_within(kind)
    }
    for kind in kinds:
        hints = get_type_hints(kind)
        keys = {field.name for field in fields(kind) if not is_dataclass(hints[field.name])}
        assert keys <= read_field_descriptions(kind).keys(), kind.__name__


@pytest.mark.parametrize("path", [*CONF.rglob("*.yaml"), *SWEEPS], ids=lambda p: str(p.relative_to(CONF.parent)))
def test_every_option_begins_with_a_description(path: Path) -> None:
    """The first comment line is what `--help` shows."""
    first = read_option_comment(path)[0]
    assert re.match(r"[\w|]", first)
    assert not first.endswith(".")
    assert 8 < len(first) <= 90


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_sweep_composes(path: Path, composed: Callable[..., Job]) -> None:
    composed(f"sweeps={path.stem}")


def test_interpolations_follow_their_keys(composed: Callable[..., Job]) -> None:
    assert sae_job(composed("layer=3")).hook_point == "blocks.3.hook_resid_pre"
    with pytest.raises(UserError, match="layer and hook_point both given"):
        composed("hook_point='blocks.${layer}.hook_mlp_out'", "layer=2")
    assert sae_job(composed("hook_point='blocks.${layer}.hook_mlp_out'")).hook_point == "blocks.6.hook_mlp_out"
    for loss in ("local", "e2e", "e2e_ds"):
        config = sae_job(composed(f"loss={loss}"))
        assert config.sparsity == config.loss.default_sparsity > 0
    assert sae_job(composed("loss=local", "sparsity=0")).sparsity == 0


def test_losses_differ_only_in_their_terms(composed: Callable[..., Job]) -> None:
    local, e2e, e2e_ds = (sae_job(composed(f"loss={name}")).loss for name in ("local", "e2e", "e2e_ds"))
    assert isinstance(local, Local)
    assert local.reconstruction == 1
    assert isinstance(e2e, E2E)
    assert (e2e.kl, e2e.reconstruction) == (1, 0)
    assert isinstance(e2e_ds, E2EDownstream)
    assert (e2e_ds.kl, e2e_ds.reconstruction) == (1, 0)
    assert e2e_ds.downstream > 0


# Braun et al. 2405.12241, docs/reference/end_to_end_saes.md §2: the run at similar CE loss increase → (λ, reconstruction, KL, downstream)
PAPER = {
    (2, "local"): (0.8, 1.0, 0.0, 0.0),
    (6, "local"): (4.0, 1.0, 0.0, 0.0),
    (10, "local"): (6.0, 1.0, 0.0, 0.0),
    (2, "e2e"): (0.5, 0.0, 1.0, 0.0),
    (6, "e2e"): (3.0, 0.0, 1.0, 0.0),
    (10, "e2e"): (1.5, 0.0, 1.0, 0.0),
    (2, "e2e_ds"): (10.0, 0.0, 0.5, 2.5),
    (6, "e2e_ds"): (50.0, 0.0, 0.5, 2.5),
    (10, "e2e_ds"): (1.75, 0.0, 0.5, 0.05),
}


@pytest.mark.parametrize(("layer", "loss"), PAPER)
def test_the_papers_runs_have_the_papers_numbers(layer: int, loss: str, composed: Callable[..., Job]) -> None:
    given = [f"experiment=paper/gpt2_layer{layer}_{loss}"]
    c = sae_job(composed(*given))
    sparsity, reconstruction, kl, downstream = PAPER[layer, loss]
    assert (c.loss.name, c.layer, c.hook_point) == (loss, layer, f"blocks.{layer}.hook_resid_pre")
    expected = {"reconstruction": reconstruction, "kl": kl, "downstream": downstream}
    assert c.sparsity == sparsity
    assert {key: c.loss.numeric_options.get(key, 0.0) for key in expected} == expected
    if (
        loss == "e2e_ds"
    ):  # every later hook_resid_pre; the last hook_resid_post is in neither loss nor metrics of theirs
        assert isinstance(c.loss, E2EDownstream)
        assert c.loss.downstream_hooks == [f"blocks.{k}.hook_resid_pre" for k in range(layer + 1, 12)]
    assert (c.loss.skip_positions, c.loss.max_norm) == ([], None)
    # docs/reference/end_to_end_saes.md §3 and §4
    assert (c.model.name, c.model.process_weights, c.model.context) == ("gpt2", True, 1024)
    assert isinstance(c.data, HubData)
    assert c.data.name == "apollo-research/Skylion007-openwebtext-tokenizer-gpt2"
    assert (c.data.column, c.data.max_tokens) == ("input_ids", 400_000 * 1024)
    assert (c.trainer.batch, c.trainer.accumulate, c.trainer.max_steps) == (8, 2, 25_000)
    assert c.trainer.max_steps * c.trainer.batch * c.trainer.accumulate * c.model.context == 400_000 * 1024
    assert c.trainer.precision is Precision.float32
    assert c.trainer.log_every == 20
    assert c.trainer.val_every * c.trainer.batch * c.trainer.accumulate == 40_000
    o = c.optimizer
    assert (o.name.value, o.lr, o.betas, o.eps, o.weight_decay) == ("adam", 5e-4, [0.9, 0.999], 1e-8, 0.0)
    assert (o.warmup_steps, o.min_lr_factor, o.clip) == (1250, 0.1, 10.0)
    s = c.sae
    assert (s.name, s.ratio, s.n_latents, s.init.value) == ("relu", 60, None, "paper")
    assert (s.normalize_activations, s.bias_at_mean) == (False, False)
    assert c.evaluation.tokens == 500 * 1024
    assert c.evaluation.alive_window == 500_000
    assert c.seed == 0
