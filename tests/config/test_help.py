"""The help pages: every option and every key with its meaning, in any terminal, and one thing at a time."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import pytest
from annotated_types import Ge, Gt, Le, MinLen
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from crux.config.catalogue import list_groups, option_files
from crux.config.descriptions import describe_type, read_field_descriptions, read_option_comment
from crux.config.help import format_help
from crux.config.paths import ROOT
from crux.config.printing import ERRORS
from crux.config.registry import register
from crux.config.schema import Precision


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


@pytest.fixture
def help_of(run_crux: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*words: str) -> str:
        assert run_crux("--help", *words) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return call


def key_names(config: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for name in map(str, config):
        missing = OmegaConf.is_missing(config, name) or OmegaConf.is_interpolation(config, name)
        inner = None if missing else config[name]
        if isinstance(inner, DictConfig) and inner and OmegaConf.get_type(inner) is not dict:
            found += key_names(inner, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


@pytest.mark.parametrize("overrides", [[], ["experiment=toy/geometry"], ["experiment=llc/kgon"], ["sae=matryoshka"]])
def test_the_page_shows_every_key_of_the_job_and_no_other(overrides: list[str]) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=[*overrides])
    hidden = {"sae.name", "loss.name", "sae._target_", "loss._target_"}
    page = format_help([*overrides, "seed=3"])
    shown = {line.split("=")[0].strip() for line in page.partition("Keys (")[2].splitlines() if line.startswith("  ")}
    expected = set(key_names(config)) - hidden
    assert expected <= shown
    assert "schema" not in page
    assert "_options" not in page
    assert "sae._target_" not in page


def test_the_page_shows_every_option_with_its_description() -> None:
    page = " ".join(format_help([]).split())
    for group in list_groups():
        for name, path in option_files(group).items():
            assert f"{name} {read_option_comment(path)[0]}" in page, f"{group}={name}"


def test_a_key_has_its_value_meaning_and_bounds(help_of: Callable[..., str]) -> None:
    words = " ".join(help_of("sae.ratio").split())
    assert words.startswith("sae.ratio=16 Number of latents per dimension of the activation")
    assert words.endswith("[number, more than 0, or null]")
    assert "sae.k=8" in " ".join(help_of("sae.k", "sae=topk", "sae.k=8").split())


def test_one_group_is_shown_with_the_keys_of_its_option(help_of: Callable[..., str]) -> None:
    page = help_of("loss")
    assert "* e2e_ds" in page
    assert "kl_finetune" in page
    assert "loss.downstream=" in page
    assert "sae.ratio" not in page
    assert "* local" in help_of("loss", "loss=local")


def test_one_option_is_shown_with_its_keys(help_of: Callable[..., str]) -> None:
    page = help_of("sae=jumprelu")
    assert page.startswith("sae=jumprelu")
    assert "sae.bandwidth=0.1" in page
    assert "loss.kl" not in page
    assert "toy.n_features=20" in help_of("experiment=toy/basic")
    assert "hydra.launcher.partition=null" in help_of("hydra/launcher=slurm")
    assert "seed=0,1,2  loss=local  sparsity=5,7,10" in help_of("sweeps=pareto")
    assert "callbacks.timer.duration=00:12:00:00" in help_of("callbacks=timer")


def test_a_debug_option_is_shown_with_the_keys_that_it_changes(help_of: Callable[..., str]) -> None:
    page = help_of("debug=limit")
    assert "trainer.max_steps=4" in page
    assert "evaluation.tokens=2048" in page
    assert "trainer.precision" not in page  # a key of the same section that keeps its value
    assert "sae.ratio" not in page


def test_a_key_of_another_job_is_shown_with_the_option_that_has_it(help_of: Callable[..., str]) -> None:
    assert help_of("sae.k").startswith("A key of sae=batch_topk, shown below; also of sae=")
    assert help_of("pretrain.lr").startswith("A key of experiment=pretrain, shown below.")
    assert "experiment=toy/" in help_of("toy.tile")
    assert "hydra.launcher.partition=null" in help_of("hydra.launcher.partition")


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("los", "--help los: no such group, section or key; did you mean loss?"),
        ("sae.kk", "--help sae.kk: no such group, section or key; did you mean sae.k?"),
        ("expansion_factor", "expansion_factor: called sae.ratio here"),
        ("sae=topkk", "sae=topkk: no such option; did you mean topk?"),
        ("spasity=1", "spasity: no such key; did you mean sparsity?"),
        ("hydra.launcher.partitionn", "--help hydra.launcher.partitionn: no such group, section or key"),
    ],
)
def test_an_unknown_name_is_one_line(
    topic: str, message: str, run_crux: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_crux("--help", topic) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(f"crux: {message}")
    assert out == ""


@pytest.mark.parametrize("width", [60, 80, 110])
def test_lines_fit_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = format_help([]).splitlines()
    unbreakable = ("  python src/main.py", "  mlflow ui")
    assert all(len(line) <= width or line.startswith(unbreakable) or " " not in line.strip() for line in lines)


def test_the_page_can_be_printed_without_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors=ERRORS))
    print(format_help([]), flush=True)
    page = written.getvalue().decode("ascii")
    assert "?" not in page
    assert "\\u" not in page
    assert "KL(clean || spliced)" in page


@dataclass
class Settings:
    """Two keys, of which one is described."""

    first: int = 0
    """The first key,
    on two lines."""
    second: int = 0


def test_descriptions_are_the_strings_below_the_fields() -> None:
    assert read_field_descriptions(Settings) == {"first": "The first key, on two lines."}


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "integer"),
        (Annotated[int, Ge(1)], "integer, 1 or more"),
        (Annotated[float, Gt(0)] | None, "number, more than 0, or null"),  # pyright: ignore[reportOperatorIssue]
        (Annotated[float, Ge(0), Le(1)], "number, from 0 to 1"),
        (bool, "true or false"),
        (str | None, "text or null"),
        (Precision, "auto, float32 or bfloat16"),
        (Annotated[list[Annotated[float, Ge(0)]], MinLen(1)], "non-empty list of numbers, each 0 or more"),
        (list[list[int]], "list of lists of integers"),
        (dict[str, int], "mapping"),
    ],
)
def test_types_are_words(hint: object, words: str) -> None:
    assert describe_type(hint) == words
