"""The options of the losses: what they need, what they reject, and how a user's loss is found."""

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import pytest
import yaml
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.build import build_loss
from crux.sae.losses.loss import Loss
from crux.sae.losses.options import E2E, E2EDownstream, Fisher, KLFinetune, Local, LossOptions
from crux.sae.losses.step import TrainingStep

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = {"local": Local, "e2e": E2E, "e2e_ds": E2EDownstream, "fisher": Fisher, "kl_finetune": KLFinetune}
VALID: dict[str, dict[str, Any]] = {
    "local": {"reconstruction": 1.0},
    "e2e": {"kl": 1.0, "reconstruction": 0.0},
    "e2e_ds": {"kl": 0.0, "reconstruction": 0.0, "downstream": 0.5},
    "fisher": {"reconstruction": 0.0, "fisher": 0.5, "block_diagonal": True},
    "kl_finetune": {"reconstruction": 1.0, "finetune_share": 0.25},
}


def make_options(loss: str, **changed: Any) -> LossOptions:
    return OPTIONS[loss](**{"name": loss, "skip_positions": [], **VALID[loss], **changed})


def read_yaml_keys(loss: str) -> dict[str, Any]:
    """Return the keys in conf/loss/<name>.yaml and its parents."""
    keys = yaml.safe_load((ROOT / "conf" / "loss" / f"{loss}.yaml").read_text("utf-8"))
    parents = [parent for parent in keys.pop("defaults") if not parent.endswith("_options")]
    return {key: value for parent in parents for key, value in read_yaml_keys(parent).items()} | keys


@pytest.mark.parametrize("loss", OPTIONS)
def test_every_yaml_holds_the_keys_of_its_options_and_names_its_class(loss: str) -> None:
    options = OPTIONS[loss](**read_yaml_keys(loss))
    options.check_section("loss")
    optional = {"max_norm", "downstream_hooks"}
    assert read_yaml_keys(loss).keys() == {field.name for field in fields(options)} - optional
    formula = build_loss(options)
    assert formula.options is options
    assert next(iter(formula.row_labels())) == "train/loss"
    assert {"train/sparsity", "train/auxk"} | {
        f"train/{term}" for term in formula.term_labels
    } <= formula.row_labels().keys()


def test_the_options_do_not_import_torch() -> None:
    code = "import sys; import crux.sae.losses.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_fields_have_bounds() -> None:
    hints = get_type_hints(KLFinetune, include_extras=True)
    assert Ge(0) in hints["reconstruction"].__metadata__
    assert Gt(0) in [m for part in hints["max_norm"].__args__ for m in getattr(part, "__metadata__", ())]


@pytest.mark.parametrize(
    ("loss", "share"), [("local", 0.0), ("e2e", 1.0), ("e2e_ds", 1.0), ("fisher", 1.0), ("kl_finetune", 0.25)]
)
def test_kind_and_contents_of_the_batches(loss: str, share: float) -> None:
    assert make_options(loss).token_share == share
    assert not make_options(loss).leaves_tokens_out
    assert make_options(loss, max_norm=3.0).leaves_tokens_out
    assert make_options(loss, skip_positions=[0]).leaves_tokens_out == (share > 0)


@pytest.mark.parametrize(
    ("loss", "changed", "message"),
    [
        (
            "local",
            {"reconstruction": 0.0},
            r"loss=local: all of its coefficients are 0, so there is nothing to minimise",
        ),
        ("e2e", {"kl": 0.0}, r"loss=e2e: all of its coefficients are 0"),
        ("e2e_ds", {"downstream": 0.0}, r"loss=e2e_ds: all of its coefficients are 0"),
        ("fisher", {"fisher": 0.0}, r"loss=fisher: all of its coefficients are 0"),
        ("fisher", {"fisher": 0.0, "reconstruction": 1.0}, r"loss\.block_diagonal changes the Fisher term"),
        ("kl_finetune", {"reconstruction": 0.0}, r"loss\.finetune_share scales the KL to the MSE"),
    ],
)
def test_contradictory_options_are_rejected(loss: str, changed: dict[str, float], message: str) -> None:
    make_options(loss).check_section("loss")
    with pytest.raises(UserError, match=message):
        make_options(loss, **changed).check_section("loss")


def test_later_hooks() -> None:
    available, written = ["blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"], "blocks.1.hook_resid_pre"
    assert make_options("e2e").later_hooks(available, written=written) == []
    assert make_options("e2e_ds").later_hooks(available, written=written) == available
    assert make_options("e2e_ds", downstream=0.0).later_hooks(available, written=written) == []
    assert (
        make_options("e2e_ds", downstream_hooks=available[1:]).later_hooks(available, written=written) == available[1:]
    )
    with pytest.raises(UserError, match=r"loss\.downstream_hooks: blocks\.1\.hook_mlp_out is not a residual after"):
        make_options("e2e_ds", downstream_hooks=["blocks.1.hook_mlp_out"]).later_hooks(available, written=written)
    with pytest.raises(UserError, match=r"loss=e2e_ds: no later residual is left after"):
        make_options("e2e_ds").later_hooks([], written=written)


@dataclass
class UserOptions(LossOptions):
    """Options of a loss outside of crux."""

    weight: float = 2.0


class UserLoss(Loss[UserOptions]):
    """The loss weight · MSE + λ · penalty."""

    term_labels: ClassVar = {"mse": "MSE"}

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        return self.options.weight * step.mse() + step.sparsity()


def test_a_users_loss_is_found_by_its_target() -> None:
    options = UserOptions(_target_=f"{__name__}.UserLoss", name="own", skip_positions=[])
    options.check_section("loss")
    loss = build_loss(options)
    assert type(loss).__name__ == "UserLoss"
    assert options.token_share == 1.0
    assert not options.real_outputs
