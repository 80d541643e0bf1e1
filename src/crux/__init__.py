"""crux finds and evaluates the features that a neural network actually uses.

    run = crux.train(["loss=e2e_ds", "layer=6"])                # as on the command line; or crux.load_run("outputs/runs/<run>")
    run.metrics["final/ce_increase"], run.history, run.sae      # final metrics, a table with one row per logged step, the SAE
    crux.compare("outputs/sweeps/pareto")                       # a table with one row per run

    subject = crux.load_subject("tiny")                         # the frozen network under study
    sae, metadata = crux.load_sae(run.folder / "sae")
    hook = metadata["hook_name"]                                # the place in the subject whose activation the SAE reads
    text = crux.load_text(subject)                              # batches of tokens: text.train and text.held_out
    clean = subject.clean(text.held_out[0], capture=[hook])     # an ordinary forward pass that keeps the activation at the hook
    spliced = subject.spliced(clean, {hook: sae})               # continues it from the hook on, with the SAE's output instead
    crux.evaluate(subject, sae, hook=hook, text=text).metrics   # the metrics that a run has under final/

The packages `crux.sae`, `crux.toy`, `crux.llc` and `crux.degeneracy` export the functions of each topic. All names are imported when they
are first used, so that the command line answers before torch is loaded.
"""

from typing import TYPE_CHECKING

from crux.config.lazy import lazy_exports

if TYPE_CHECKING:
    from crux.api.compare import compare
    from crux.api.evaluation import evaluate, load_sae, load_subject, load_text
    from crux.api.run import Run, load_run
    from crux.api.train import train
    from crux.config.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "Run",
    "UserError",
    "compare",
    "evaluate",
    "load_run",
    "load_sae",
    "load_subject",
    "load_text",
    "train",
]

# each name of __all__ is imported on first use, from the module that the TYPE_CHECKING block gives for it
__getattr__, __dir__ = lazy_exports(__name__)
