"""Every option composes and passes the checks; the paper's experiments are the paper's."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from crux.config import schema
from crux.config.errors import UserError
from crux.config.schema import Config, Precision, Task, to_plain
from crux.sae.checks import check

CONF = Path(__file__).resolve().parents[1] / "conf"
OPTIONS = sorted(
    (str(p.parent.relative_to(CONF)).partition("/")[0], p)
    for p in CONF.rglob("*.yaml")
    if p.parent != CONF and not p.is_relative_to(CONF / "hydra")
)
SWEEPS = sorted((CONF.parent / "sweeps").glob("*.yaml"))


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """The configuration of a command line, as objects."""
    outputs = tmp_path_factory.mktemp("outputs")

    def make(*overrides: str) -> Config:
        schema.register()
        with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(CONF), version_base="1.3"):
            patch.setenv("CRUX_ROOT", str(CONF.parent))
            patch.setenv("CRUX_OUTPUTS", str(outputs))
            config = OmegaConf.to_object(compose("config", overrides=list(overrides)))
        assert isinstance(config, Config)
        return config

    return make


def test_the_defaults_are_the_main_job(composed: Callable[..., Config]) -> None:
    config = composed()
    check(config, [])
    assert (config.task, config.model.name, config.loss.name, config.layer) == (Task.train, "tiny", "e2e_ds", 6)
    assert config.hook_point == "blocks.6.hook_resid_pre"
    assert config.sparsity == config.loss.default_sparsity


@pytest.mark.parametrize("path", [p for _, p in OPTIONS], ids=lambda p: str(p.relative_to(CONF).with_suffix("")))
def test_every_option_composes_and_is_accepted(path: Path, composed: Callable[..., Config]) -> None:
    group, _, option = str(path.relative_to(CONF).with_suffix("")).partition("/")
    given = [f"{group}={option}"]
    if group == "data" and option == "hub":
        given.append("data.name=some/dataset")
    if group == "toy":
        given.append("experiment=toy/intro_polygon")  # says the rest
    if group == "llc":
        given.append(f"experiment=llc/{'kgon' if option == 'sampling' else 'calibrate'}")
    if group == "degeneracy":
        given.append("experiment=degeneracy/spectra")
    if group == "interaction_basis":
        own = {"addition": "modular_addition_training", "compare": "mlp"}
        given.append(f"experiment=interaction_basis/{own.get(option, option)}")
        if option == "compare":  # a part of the others
            given = given[1:]
    if option == "toy/sae":
        with pytest.raises(UserError, match="must be the run folder of a toy experiment"):
            check(composed(*given), given)
        return
    config = composed(*given)
    check(config, given)
    to_plain(config)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_sweep_composes(path: Path, composed: Callable[..., Config]) -> None:
    check(composed(f"sweeps={path.stem}"), [])


def test_interpolations_follow_their_keys(composed: Callable[..., Config]) -> None:
    assert composed("layer=3").hook_point == "blocks.3.hook_resid_pre"
    assert composed("hook_point='blocks.${layer}.hook_mlp_out'", "layer=2").hook_point == "blocks.2.hook_mlp_out"
    for loss in ("local", "e2e", "e2e_ds"):
        config = composed(f"loss={loss}")
        assert config.sparsity == config.loss.default_sparsity > 0
    assert composed("loss=local", "sparsity=0").sparsity == 0


def test_losses_differ_in_their_terms_alone(composed: Callable[..., Config]) -> None:
    terms = {name: composed(f"loss={name}").loss for name in ("local", "e2e", "e2e_ds")}
    assert [(t.reconstruction > 0, t.kl > 0, t.downstream > 0) for t in terms.values()] == [
        (True, False, False),
        (False, True, False),
        (False, True, True),
    ]


# Braun et al. 2405.12241, from reference/e2e_sae.md §1.2: run at similar CE loss increase → (λ, reconstruction, KL, downstream)
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
def test_the_papers_runs_have_the_papers_numbers(layer: int, loss: str, composed: Callable[..., Config]) -> None:
    given = [f"experiment=paper/gpt2_layer{layer}_{loss}"]
    c = composed(*given)
    check(c, given)
    sparsity, reconstruction, kl, downstream = PAPER[layer, loss]
    assert (c.loss.name, c.layer, c.hook_point) == (loss, layer, f"blocks.{layer}.hook_resid_pre")
    assert (c.sparsity, c.loss.reconstruction, c.loss.kl, c.loss.downstream) == (
        sparsity,
        reconstruction,
        kl,
        downstream,
    )
    if (
        loss == "e2e_ds"
    ):  # every later hook_resid_pre; the last hook_resid_post is in neither loss nor metrics of theirs
        assert c.loss.downstream_hooks == [f"blocks.{k}.hook_resid_pre" for k in range(layer + 1, 12)]
    assert (c.loss.skip_positions, c.loss.max_norm) == ([], None)
    # §1.3, §1.4
    assert (c.model.name, c.model.process_weights, c.model.context) == ("gpt2", True, 1024)
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
