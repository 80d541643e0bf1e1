"""crux finds and judges the features that a neural network actually uses.

    subject = crux.load_subject("tiny")
    sae, metadata = crux.load_sae("outputs/runs/<run>/sae")
    hook, text = metadata["hook_name"], crux.held_out_batches(subject)
    clean = subject.clean(text.held_out[0], capture=[hook])     # clean.activations[hook], clean.final
    spliced = subject.spliced(clean, {hook: sae})               # the same, with the SAE in its place
    crux.evaluate(subject, sae, hook=hook, text=text).metrics   # the numbers of metrics.json

Names are imported when they are first used: the command line answers before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crux.notebook import evaluate, held_out_batches, load_sae, load_subject

__all__ = ["evaluate", "held_out_batches", "load_sae", "load_subject"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'crux' has no attribute {name!r}")
    return getattr(import_module("crux.notebook"), name)
