"""The help pages of the command line: what crux is, the options of each group, and every key of a job."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from crux.config.catalogue import find_experiments, find_options, has_key, list_groups, option_files, read_choice
from crux.config.columns import LEFT_WIDTH, format_columns, format_heading, format_table, wrap
from crux.config.descriptions import read_option_comment
from crux.config.errors import UserError
from crux.config.help_keys import Key, format_key, format_plain_value, list_job_keys
from crux.config.messages import explain_synonym, find_launchers, list_launcher_keys, suggest_nearest
from crux.config.paths import ROOT
from crux.config.registry import known_keys

INTRODUCTION = """\
crux finds and evaluates the features that a neural network actually uses. It trains sparse autoencoders (SAEs) against what the \
network computes downstream, not only against its activations, and adds toy models of superposition, local learning coefficients \
and the interaction basis."""

FIRST_COMMANDS = (
    ("{program}", "train an SAE on the packaged language model, evaluate it, record it in MLflow"),
    ("{program} loss=e2e_ds layer=6", "choose options (loss=…) and set keys (layer=…)"),
    ("{program} -m loss=local,e2e layer=2,4,6", "a grid of jobs; the same command resumes it"),
    ("{program} sweeps=pareto", "a named grid of jobs, with a figure"),
    ("{program} experiment=toy/phase_diagram", "anything else: toy models, learning coefficients, …"),
    ("mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db", "compare runs"),
)
MORE_HELP = (
    ("--help loss", "one group, section or key (--help sae.ratio)"),
    ("--help sae=jumprelu", "one option and its keys"),
    ("--help experiment=toy/basic", "an experiment and all of its keys"),
)
GROUPS = {
    "loss": "what an SAE is trained for",
    "sae": "the SAE's architecture",
    "model": "the network under study",
    "data": "the text that it is studied on",
    "optimizer": "how the SAE's weights move",
    "trainer": "the length of the training and its intervals",
    "evaluation": "the evaluation on held-out data",
    "tracking": "where runs are recorded",
    "callbacks": "Lightning callbacks for the training",
    "debug": "short runs, to see that a job works",
    "hydra/launcher": "where the jobs of a grid run; one after the other in this process if not given",
    "sweeps": "named grids of jobs",
    "experiment": "other jobs than training an SAE, and settings of papers",
}
"""The groups in the order of the help page; those of plug-ins come after them."""


def format_help(words: Sequence[str]) -> str:
    """Return the help that a command line asks for.

    Args:
        words: the command line without `--help`: overrides (with `=`) that choose a job, and the groups, sections or keys to show. A
            single `group=option` shows that option.

    Raises:
        UserError: if there is no such group, section or key.
    """
    overrides = [word for word in words if "=" in word]
    topics = [word for word in words if "=" not in word and not word.startswith("-")]
    if topics:
        return "\n\n".join(_format_topic(topic, overrides) for topic in topics)
    if len(overrides) == 1 and (group := overrides[0].partition("=")[0]) in list_groups():
        return _format_option(group, overrides[0].partition("=")[2], overrides)
    return _format_page(overrides)


def _format_page(overrides: Sequence[str]) -> str:
    config = _compose(overrides)
    program = "crux" if Path(sys.argv[0]).name == "crux" else "python src/main.py"
    start = [(command.format(program=program), text) for command, text in FIRST_COMMANDS]
    more = [(f"{program} {command}", text) for command, text in MORE_HELP]
    parts = [wrap(INTRODUCTION, indent=0), format_table("Start", start), format_table("More help", more)]
    choices = _read_choices(config)
    shown = [group for group in GROUPS if group in list_groups()] + [
        group for group in list_groups() if group not in GROUPS
    ]
    parts += [format_heading("Options (group=option; * is chosen in this job)")]
    parts += [_format_group(group, choices) for group in shown if group in choices]
    parts += [format_heading("Keys (key=value, with the values of this job)"), *_format_sections(config)]
    return "\n\n".join(parts)


def _format_topic(topic: str, overrides: Sequence[str]) -> str:
    """Return the help of a group, a section or a key."""
    if topic.startswith("hydra.launcher"):
        return _format_launcher_topic(topic, overrides)
    is_group, is_key = topic in list_groups(), topic in known_keys()
    if not is_group and not is_key:
        raise UserError(_explain_unknown_topic(topic, overrides))
    parts = []
    if is_key and not has_key(read_choice(overrides), topic):
        owners = find_options(topic, read_choice(overrides)) or find_experiments(topic)
        if owners:  # show the first option or experiment that has the key, and name the others
            first, *others = owners
            also = f"; also of {_enumerate(others)}" if others else ""
            parts = [wrap(f"A key of {first}, shown below{also}.", indent=0)]
            overrides = [*overrides, first]
    config = _compose(overrides)
    if is_group:
        parts.append(_format_group(topic, _read_choices(config)))
    if is_key:
        prefix = f"{topic}."
        parts += [format_key(key) for key in list_job_keys(config) if key.name == topic]
        if inner := [format_key(key) for key in list_job_keys(config) if key.name.startswith(prefix)]:
            parts.append("\n".join([format_heading(_format_section_title(topic, config)), *inner]))
    return "\n\n".join(parts)


def _enumerate(options: Sequence[str], *, max_named: int = 5) -> str:
    """Return options as words of a sentence: `a`, `a, b and c`, or `a, b, c, d, e and 3 others`."""
    if len(options) > max_named:
        return f"{', '.join(options[:max_named])} and {len(options) - max_named} others"
    *others, last = options
    return f"{', '.join(others)} and {last}" if others else last


def _format_option(group: str, option: str, overrides: Sequence[str]) -> str:
    """Return the help of one option: its description, and the keys of its section, or of its whole job."""
    config = _compose(overrides)
    first, *rest = read_option_comment(option_files(group)[option]) or [""]
    parts = [wrap(f"{group}={option} — {first}", indent=0, hanging=2)]
    if rest:
        parts.append(wrap(" ".join(rest), indent=2))
    if group == "hydra/launcher":
        return "\n\n".join([*parts, *_format_launcher_keys(config)])
    inner = [format_key(key) for key in list_job_keys(config) if key.name.startswith(f"{group}.")]
    if inner:
        parts.append("\n".join([format_heading("Keys"), *inner]))
    elif group == "sweeps":
        parts.append(
            "\n".join(
                [
                    format_heading("Grid"),
                    *(f"  {line}" for line in _format_grids(config)),
                    "",
                    "  the other keys: --help",
                ]
            )
        )
    elif group == "debug":
        changed = _list_leaves(OmegaConf.load(option_files(group)[option]))
        keys = [format_key(key) for key in list_job_keys(config) if key.name in changed]
        parts.append("\n".join([format_heading("Keys that it changes"), *keys, "", "  the other keys: --help"]))
    elif group == "callbacks" and config.callbacks:
        lines = [f"  {name}={value}" for name, value in _list_leaves(config.callbacks, "callbacks.").items()]
        parts.append("\n".join([format_heading("Keys"), *lines]))
    elif group == "experiment":
        parts += [format_heading("Keys (key=value, with the values of this job)"), *_format_sections(config)]
    return "\n\n".join(parts)


def _list_leaves(section: Any, prefix: str = "") -> dict[str, str]:
    """Return the dotted keys of a configuration that has no dataclass, with their values."""
    leaves: dict[str, str] = {}
    for name, value in section.items():
        leaves |= (
            _list_leaves(value, f"{prefix}{name}.")
            if isinstance(value, DictConfig)
            else {f"{prefix}{name}": format_plain_value(value)}
        )
    return leaves


def _format_grids(config: DictConfig) -> Iterator[str]:
    """Yield what a sweep varies, one line per grid."""
    sweeper = OmegaConf.to_container(config.hydra.sweeper)
    assert isinstance(sweeper, dict)
    for grid in sweeper["grids"] or [{}]:
        yield "  ".join(f"{key}={values}" for key, values in (sweeper["params"] | grid).items())


def _format_launcher_topic(topic: str, overrides: Sequence[str]) -> str:
    if topic != "hydra.launcher" and topic not in list_launcher_keys():
        raise UserError(_explain_unknown_topic(topic, overrides))
    if not any(override.startswith("hydra/launcher=") for override in overrides):
        overrides = [*overrides, f"hydra/launcher={find_launchers(topic)[0]}"]
    keys = list_job_keys(_compose(overrides).hydra.launcher, "hydra.launcher.")
    return "\n".join(format_key(key) for key in keys if topic in (key.name, "hydra.launcher"))


def _format_launcher_keys(config: DictConfig) -> Iterator[str]:
    yield "\n".join(
        [format_heading("Keys"), *(format_key(key) for key in list_job_keys(config.hydra.launcher, "hydra.launcher."))]
    )


def _explain_unknown_topic(topic: str, overrides: Sequence[str]) -> str:
    if (line := explain_synonym(topic, overrides=overrides)) is not None:
        return line
    choices = [*list_groups(), *known_keys()]
    guess = suggest_nearest(topic, choices)
    return (
        f"--help {topic}: no such group, section or key; {guess or 'groups are ' + ', '.join(list_groups())}".rstrip()
    )


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


def _read_choices(config: DictConfig) -> dict[str, str | None]:
    """Return the option of each group that a job reads."""
    chosen = dict(config.hydra.runtime.choices)
    return {group: chosen[group] for group in list_groups() if group in chosen}


def _format_group(group: str, choices: dict[str, str | None]) -> str:
    title = f"{group} — {GROUPS[group]}" if group in GROUPS else group
    lines = [wrap(title, indent=0, hanging=2)]
    width = max((len(name) for name in option_files(group)), default=0)
    for name, path in option_files(group).items():
        mark = "*" if choices.get(group) == name else " "
        description = (read_option_comment(path) or [""])[0]
        lines.append(format_columns(f"{mark} {name}", description, column=min(width + 4, LEFT_WIDTH)))
    return "\n".join(lines)


def _format_sections(config: DictConfig) -> Iterator[str]:
    """Yield the keys of a job, one block per section."""
    keys: dict[str, list[Key]] = {}
    for key in list_job_keys(config):
        keys.setdefault(key.name.partition(".")[0] if "." in key.name else "", []).append(key)
    for section in sorted(keys, key=bool):  # the job's own keys first
        title = _format_section_title(section, config) if section else _format_job_title(config)
        yield "\n".join([title, *(format_key(key) for key in keys[section])])


def _format_job_title(config: DictConfig) -> str:
    comment = read_option_comment(option_files("job")[config.hydra.runtime.choices["job"]]) or [""]
    return wrap(f"the job — {comment[0]}", indent=0, hanging=2)


def _format_section_title(section: str, config: DictConfig) -> str:
    if (chosen := _read_choices(config).get(section)) is not None:
        return f"{section} ({section}={chosen})"
    kind = OmegaConf.get_type(OmegaConf.select(config, section))
    description = (kind.__doc__ or "").strip().partition("\n")[0]
    return wrap(f"{section} — {description}" if is_dataclass(kind) else section, indent=0, hanging=2)
