"""crux finds and evaluates the features that a neural network actually uses.

    run = crux.train(["loss=e2e_ds", "layer=6"])                # as on the command line; or crux.load_run("outputs/runs/<run>")
    run.metrics["final/ce_increase"], run.history, run.sae      # numbers of metrics.json, a table with a row per logged step, the SAE
    crux.compare("outputs/sweeps/pareto")                       # a table with a row per run

    subject = crux.load_subject("tiny")
    sae, metadata = crux.load_sae(run.folder / "sae")
    hook, text = metadata["hook_name"], crux.held_out_batches(subject)
    clean = subject.clean(text.held_out[0], capture=[hook])     # clean.activations[hook], clean.final
    spliced = subject.spliced(clean, {hook: sae})               # the same, with the SAE in its place
    crux.evaluate(subject, sae, hook=hook, text=text).metrics   # the numbers of metrics.json

The packages `crux.sae`, `crux.toy`, `crux.llc` and `crux.degeneracy` export the functions of each subject matter. All names are
imported when they are first used, so that the command line answers before torch is loaded.
"""

from typing import TYPE_CHECKING

from crux.config.lazy import lazy_exports

if TYPE_CHECKING:
    from crux.api.compare import compare
    from crux.api.evaluation import evaluate, held_out_batches, load_sae, load_subject
    from crux.api.run import Run, load_run
    from crux.api.train import train
    from crux.config.errors import UserError

__all__ = [
    "Run",
    "UserError",
    "compare",
    "evaluate",
    "held_out_batches",
    "load_run",
    "load_sae",
    "load_subject",
    "train",
]

# each name of __all__ is imported on first use, from the module that the TYPE_CHECKING block gives for it
__getattr__, __dir__ = lazy_exports(__name__)
