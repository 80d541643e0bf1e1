"""The command line: Hydra composes and checks the configuration; heavy libraries come in once it is known to be good.

A user's mistake is a ValueError below, one line on the screen and exit code 2; Ctrl-C is 130.
"""

import difflib
import errno
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crux import schema
from crux.checks import check, check_model
from crux.schema import Config

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
ROOT = CHECKOUT if (CHECKOUT / "conf" / "config.yaml").exists() else HERE
"""The folder of conf/ and sweeps/: the checkout, or the installed package."""


def fail(message: str, *, code: int) -> NoReturn:
    """One line on standard error, then out."""
    print(f"crux: {message}", file=sys.stderr)
    sys.exit(code)


def nearest(word: str, choices: list[str]) -> str:
    """`did you mean …?` with the closest choice, where one is close."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]}? " if close else ""


def options(group: str) -> list[str]:
    """Every option of a group, those in its subfolders too."""
    folder = ROOT / "sweeps" if group == "sweeps" else ROOT / "conf" / group
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def no_such_key(key: str) -> str:
    """What is wrong with a key, the nearest one, and those beside it."""
    keys = known_keys()
    prefix = key.rpartition(".")[0]
    beside = [k for k in keys if k.rpartition(".")[0] == prefix] or [k for k in keys if "." not in k]
    return f"{key}: no such key; {nearest(key, keys)}allowed there are {', '.join(sorted(beside))}"


PHRASES = {
    r"Value '(.*)' of type '.*' could not be converted to Integer": "={}: must be a whole number",
    r"Value '(.*)' of type '.*' could not be converted to Float": "={}: must be a number",
    r"Value '(.*)' is not a valid bool.*": "={}: must be true or false",
    r"Invalid value '(.*)', expected one of \[(.*)\]": "={}: allowed are {}",
    r"field '.*' is not Optional": "=null: must have a value",
}
"""OmegaConf's messages about a value, and ours."""


def explain(error: HydraException | OmegaConfBaseException) -> str:
    """Hydra's and OmegaConf's composition errors in one line, with the nearest valid choice."""
    text = str(error)
    if match := re.search(r"(?:Could not (?:find|load)|In '[^']*': Could not find) '([^']+)'", text):
        group, _, option = match[1].partition("/")
        allowed = options(group)
        return f"{group}={option}: no such option; {nearest(option, allowed)}allowed are {', '.join(allowed) or 'none'}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return no_such_key(match[1])
    if match := re.match(r"Error parsing override '(.*)'", text):
        return f"{match[1]}: cannot be read; write key=value, with quotes where the shell or a comma needs them"
    if match := re.match(r"Ambiguous value for argument '(.*)'", text):
        return f"{match[1]}: several values are a grid, say -m for it; one list is written [a,b]"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    key = getattr(error, "full_key", None) or next((x[10:] for x in lines if x.startswith("full_key: ")), "")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    message = str(cause).splitlines()[0]
    key = key or next((x.strip()[10:] for x in str(cause).splitlines() if x.strip().startswith("full_key: ")), "")
    for pattern, words in PHRASES.items():
        if match := re.fullmatch(pattern, message):
            return key + words.format(*match.groups())
    return f"{key}: {message}" if key else message


def known_keys() -> list[str]:
    """Every dotted key of the configuration."""

    def walk(node: type, prefix: str) -> list[str]:
        keys: list[str] = []
        for name, kind in node.__annotations__.items():
            keys.append(prefix + name)
            inner = (
                kind
                if isinstance(kind, type)
                else next((k for k in getattr(kind, "__args__", ()) if k is not type(None)), None)
            )
            if isinstance(inner, type) and hasattr(inner, "__dataclass_fields__"):
                keys += walk(inner, f"{prefix}{name}.")
        return keys

    return walk(Config, "")


failures: list[str] = []
"""Users' mistakes, one a failed job: Hydra would print more than a line about each."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR)
"""Errors of the machine's disk, told in one line."""


def raised_here(error: ValueError) -> bool:
    """Whether crux itself raised it: a user's mistake. A library's ValueError is our bug and keeps its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).is_relative_to(HERE)


def job(cfg: DictConfig) -> None:
    """One job: the configuration is resolved and checked, then run."""
    hydra_config = HydraConfig.get()
    overrides = cast(list[str], OmegaConf.to_container(hydra_config.overrides.task, resolve=False))  # may refer to keys
    where = f"{' '.join(overrides)}: " if hydra_config.mode == RunMode.MULTIRUN else ""
    try:
        added = [o.partition("=")[0].lstrip("+") for o in overrides if o.startswith("+")]
        if unknown := [key for key in added if key not in known_keys() and not (ROOT / "conf" / key).is_dir()]:
            raise ValueError(no_such_key(unknown[0]))
        config = OmegaConf.to_object(cfg)
        assert isinstance(config, Config)
        check(config, overrides)
        check_model(config)
        folder = Path(hydra_config.runtime.output_dir) if hydra_config.mode == RunMode.MULTIRUN else None

        from crux.run import run

        run(config, folder=folder)
    except OmegaConfBaseException as error:  # some of them are ValueErrors too
        failures.append(where + explain(error))
    except ValueError as error:
        if not raised_here(error):
            raise
        failures.append(where + " ".join(str(error).split()))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        failures.append(where + f"{error.filename or cfg.output_dir}: {error.strerror}")


def main() -> None:
    """The entry point of `python src/main.py` and of the console script `crux`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them
    os.environ["CRUX_ROOT"] = str(ROOT)
    os.environ.setdefault("CRUX_OUTPUTS", str((CHECKOUT if ROOT == CHECKOUT else Path.cwd()) / "outputs"))
    if dashed := [a for a in sys.argv[1:] if a.startswith("--") and a[2:].partition("=")[0] in known_keys()]:
        fail(f"{dashed[0]}: keys have no dashes, write {dashed[0][2:].partition('=')[0]}=…", code=2)
    sys.argv[1:] = sorted(
        sys.argv[1:], key=lambda word: word not in ("-m", "--multirun")
    )  # anywhere, as people write it
    failures.clear()
    schema.register()
    entry = hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")(job)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        entry()
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error), code=2)
    except OSError as error:  # Hydra makes the folder before it calls the job
        if error.errno not in (*DISK_ERRORS, errno.EEXIST, errno.ENOENT):
            raise
        fail(f"output_dir: {error.filename} cannot be made ({error.strerror})", code=2)
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    if failures:
        fail("\ncrux: ".join(failures), code=2)
