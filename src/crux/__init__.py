"""crux finds and judges the features that a neural network actually uses.

    subject = crux.load_subject("tiny")
    sae, metadata = crux.load_sae("outputs/runs/<run>/sae")
    clean = subject.clean(tokens, capture=["blocks.6.hook_resid_pre"])
    spliced = subject.spliced(clean, {"blocks.6.hook_resid_pre": sae})
    crux.evaluate(subject, sae, ...)

Names are imported when they are first used: the command line answers before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crux.notebook import evaluate, held_out_batches, load_sae, load_subject

__all__ = ["evaluate", "held_out_batches", "load_sae", "load_subject"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'crux' has no attribute {name!r}")
    return getattr(import_module("crux.notebook"), name)
