"""Every numeric key of every job has a finite upper bound, and values that are no sensible number are refused by the key's name."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crux.config.bounds import check_bounds
from crux.config.catalogue import find_annotation, option_files, options_class, read_experiment
from crux.config.compose import build_job
from crux.config.errors import UserError
from crux.config.messages import explain_user_error
from crux.config.paths import ROOT
from crux.config.registry import list_keys, options_by_group, register
from tests.support.experiments import NEED_A_FOLDER

LOWER_IS_CHECKED_BY_THE_MODEL = ("layer",)
"""Keys whose lower bound is reported with the layers that the model has."""


def numeric_parts(hint: Any) -> Iterator[tuple[type, tuple[object, ...]]]:
    """Yield the numbers within an annotation, each with its bounds: those of a list's items too."""
    if hint in (int, float):
        yield hint, ()
    elif get_origin(hint) is Annotated and get_args(hint)[0] in (int, float):
        yield get_args(hint)[0], get_args(hint)[1:]
    else:
        for inner in get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint):
            yield from numeric_parts(inner)


def crux_dataclasses() -> Iterator[tuple[str, type]]:
    for group, options in options_by_group().items():
        for kind in options.values():
            if kind.__module__.startswith("crux."):
                yield group, kind


def numeric_fields() -> dict[tuple[type, str], Any]:
    """Return the annotation of each numeric key of each options dataclass, those of nested sections included."""
    found: dict[tuple[type, str], Any] = {}

    def visit(kind: type) -> None:
        hints = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            hint = hints[field.name]
            if isinstance(hint, type) and is_dataclass(hint):
                visit(hint)
            elif any(numeric_parts(hint)):
                found[kind, field.name] = hint

    for _, kind in crux_dataclasses():
        visit(kind)
    return found


FIELDS = numeric_fields()
IDS = [f"{kind.__name__}.{name}" for kind, name in FIELDS]


@pytest.mark.parametrize(("owner", "hint"), FIELDS.items(), ids=IDS)
def test_a_numeric_key_has_bounds_on_both_sides(owner: tuple[type, str], hint: Any) -> None:
    for _, bounds in numeric_parts(hint):
        assert any(isinstance(bound, Le | Lt) for bound in bounds)
        assert any(isinstance(bound, Ge | Gt) for bound in bounds) or owner[1] in LOWER_IS_CHECKED_BY_THE_MODEL


def nest(value: float, hint: Any) -> Any:
    """Return the value in as many lists as the annotation has."""
    depth = str(hint).count("list[")
    for _ in range(depth):
        value = [value]  # pyright: ignore[reportAssignmentType]
    return value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 1e300, 10**30])
@pytest.mark.parametrize(("owner", "hint"), FIELDS.items(), ids=IDS)
def test_a_value_that_is_no_sensible_number_is_refused_by_its_key(
    owner: tuple[type, str], hint: Any, value: float
) -> None:
    kind, name = owner
    if value == -1 and name in LOWER_IS_CHECKED_BY_THE_MODEL:
        return
    single = type(
        kind.__name__,
        (),
        {"__annotations__": {name: hint}, "__dataclass_fields__": {name: kind.__dataclass_fields__[name]}},
    )
    instance = single()
    object.__setattr__(instance, name, nest(value, hint))
    with pytest.raises(UserError, match=rf"^section\.{re.escape(name)}="):
        check_bounds(instance, "section")


EXPERIMENTS = [None, *option_files("experiment")]


def numeric_keys(experiment: str | None) -> Iterator[str]:
    """Yield the numeric keys of a job, as they are typed."""
    choice = read_experiment(experiment)
    job = options_by_group()["job"][choice.job]
    keys = set(list_keys(job))
    for group, option in choice.options.items():
        if (kind := options_class(group, option)) is not None:
            keys |= {f"{group}.{key}" for key in list_keys(kind)}
    yield from sorted(key for key in keys if any(numeric_parts(find_annotation(choice, key))))


def set_and_check(config: DictConfig, key: str, value: Any, words: list[str]) -> None:
    OmegaConf.update(config, key, value)
    build_job(config, [*words, f"{key}=x"])


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
def test_a_job_refuses_such_values_of_each_of_its_keys(experiment: str | None, tmp_path: Path) -> None:
    """As the command line does after it has composed the job. The values alternate between the keys."""
    words = [f"experiment={experiment}"] if experiment else []
    words += [NEED_A_FOLDER[experiment].format(tmp_path, tmp_path / "b")] if experiment in NEED_A_FOLDER else []
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", overrides=words)
    keys = list(numeric_keys(experiment))
    assert "seed" in keys
    for number, key in enumerate(keys):
        hint = find_annotation(read_experiment(experiment), key)
        value = nest((float("nan"), float("inf"), -1, 1e300, 10**30)[number % 5], hint)
        with pytest.raises((UserError, OmegaConfBaseException)) as refused:
            set_and_check(composed.copy(), key, value, words)
        line = explain_user_error(refused.value, overrides=words) or ""
        assert key in line, line
        assert "\n" not in line
