"""Compare the metadata of a saved SAE with the model and the hook points at which it is to be used. This module does not import torch."""

import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from crux.config.errors import UserError
from crux.subjects.model_names import hub_name


class Place(NamedTuple):
    """A place where an SAE is used: hook points of a subject."""

    model: str
    """The subject's name: `tiny`, a name on the hub, or a folder."""
    process_weights: bool
    read: str
    """The hook point whose activation the SAE reads."""
    write: str
    """The hook point whose activation it replaces; that of `read` unless it is a transcoder."""


def saved_hooks(metadata: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the hook points that an SAE reads and writes, by its metadata; None if they do not say it."""
    read = metadata.get("hook_name")
    write = metadata.get("hook_name_out")
    return read, read if write is None else write


def check_belonging(metadata: Mapping[str, Any], place: Place, *, what: str, force: bool, insist: str) -> None:
    """Check that an SAE is used on the model, with the weight processing and at the hook points that its metadata name.

    What the metadata do not say is not compared; a note on standard error names it. SAEs of other tools often lack some of it.

    Args:
        what: the SAE in messages, a noun such as `the SAE in <folder>`.
        force: whether the user insists on using it there; then a mismatch is only a note.
        insist: the option by which the user insists, for the message.

    Raises:
        UserError: for the first mismatch, in one line, unless `force` is set.
    """
    missing = []
    for found, comparison in (
        (_compare_hooks(metadata, place), "hook point"),
        (_compare_models(metadata, place), "model"),
        (_compare_processing(metadata, place), "weight processing"),
    ):
        if found is None:
            missing.append(comparison)
        elif found:
            if not force:
                raise UserError(f"{what} {found}; {insist} uses it nevertheless")
            _note(f"{what} {found}; it is used nevertheless ({insist})")
    if metadata.get("prepend_bos"):
        _note(f"{what} belongs to sequences that begin with a BOS token, which crux does not add")
    if missing:
        _note(f"{what} does not say its {' or '.join(missing)}, which could not be compared")


def _compare_hooks(metadata: Mapping[str, Any], place: Place) -> str | None:
    """Return in words how the hook points differ; an empty string if they do not, None if the metadata lack them."""
    read, write = saved_hooks(metadata)
    if read is None or write is None:
        return None
    if (head := metadata.get("hook_head_index")) is not None:
        return f"reads head {head} alone of {read}; crux's hook points have all heads"
    if network_place(read) != network_place(place.read):
        return f"reads {read}, not {place.read}"
    if network_place(write) != network_place(place.write):
        return f"writes {write}, not {place.write}"
    return ""


def network_place(hook: str) -> str:
    """Return a hook point, with a block's output as the next block's input, which is the same activation."""
    match = re.fullmatch(r"blocks\.(\d{1,9})\.hook_resid_post", hook)
    return f"blocks.{int(match[1]) + 1}.hook_resid_pre" if match else hook


def _compare_models(metadata: Mapping[str, Any], place: Place) -> str | None:
    """Return in words how the models differ; an empty string if they do not, None if the metadata lack the name."""
    name = metadata.get("model_name")
    if name is None:
        return None
    return "" if is_same_model(name, place.model) else f"belongs to the model {name}, not to {place.model}"


def is_same_model(name: str, other: str) -> bool:
    """Return whether two names mean the same model.

    Two folders on this machine are compared as folders. Otherwise the last parts of names or paths are compared: the owner on the hub
    is often left out (`pythia-70m`, `EleutherAI/pythia-70m`), and folders are moved. Short names of TransformerLens, which SAELens
    uses, mean the models that they mean there.
    """
    if name == other:
        return True
    try:
        paths = Path(name).expanduser(), Path(other).expanduser()
        if all(path.is_dir() for path in paths):
            return paths[0].samefile(paths[1])
    except (OSError, ValueError, RuntimeError):  # a name that cannot be a path, or of an unknown user's home folder
        pass
    name, other = hub_name(name), hub_name(other)
    if name.count("/") == other.count("/") == 1:
        return name.lower() == other.lower()  # names on the hub, each with an owner
    return _last_part(name) == _last_part(other)


def _last_part(name: str) -> str:
    """Return the last part of a model's name or path, by which it is known on the hub."""
    cached = re.search(r"models--(?:[^/]+--)?([^/]+)/snapshots/[^/]+/?$", name)  # the hub's local cache
    return (cached[1] if cached else Path(name).name).lower()


def _compare_processing(metadata: Mapping[str, Any], place: Place) -> str | None:
    """Return in words how the weight processing differs; an empty string if it does not, None if the metadata lack it."""
    processed = metadata.get("process_weights")
    if processed is None:
        kwargs = metadata.get("model_from_pretrained_kwargs")
        if kwargs is None:
            return None
        # SAELens loads networks unprocessed except for these; of TransformerLens's steps, this one changes the activation
        step = "fold_value_biases" if place.read.endswith("hook_z") else "center_writing_weights"
        processed = kwargs.get(step, False)
        if not isinstance(processed, bool):
            return None
    if processed == place.process_weights:
        return ""
    theirs, ours = str(processed).lower(), str(place.process_weights).lower()
    return f"belongs to a model with process_weights={theirs}, not {ours}"


@cache
def _note(message: str) -> None:
    """Print a note on standard error, once per process."""
    print(f"crux: {message}", file=sys.stderr)
