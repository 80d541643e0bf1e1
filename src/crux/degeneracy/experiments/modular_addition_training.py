"""Experiment: train the modular-addition network, which other experiments load by `model.path`."""

import torch

from crux.degeneracy.experiments.trained_addition import last_addition_row, train_in_run
from crux.degeneracy.figures.grokking import grokking
from crux.degeneracy.networks.addition_folder import RUN_SUBFOLDER
from crux.degeneracy.networks.modular_addition_module import evaluate_addition
from crux.degeneracy.options import AdditionTrainingJob
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result


def result(job: AdditionTrainingJob, run: ActiveRun) -> Result:
    """Train the network, and report losses and held-out accuracy over the steps."""
    network, tokens = train_in_run(
        job.interaction_basis.addition,
        optimizer=job.optimizer,
        trainer=job.trainer,
        callbacks=job.callbacks,
        run=run,
    )
    train, test = evaluate_addition(network, tokens.train), evaluate_addition(network, tokens.test)
    rows = [row for row in run.folder.read_history() if "val/accuracy" in row]
    history = {name: [row[name] for row in rows] for name in ("step", "train/loss", "val/loss", "val/accuracy")}
    steps = history["step"][-1] if rows else 0.0
    metrics = {"steps": steps, "accuracy": test.accuracy, "train_accuracy": train.accuracy}
    metrics |= {"loss": test.loss, "train_loss": train.loss}
    report = (
        f"{steps:.0f} steps. Share of held-out pairs that are right: {test.accuracy:.4f}; loss {test.loss:.3g} nats on held-out pairs, "
        f"{train.loss:.3g} on training pairs.\nThe network: model.path={run.folder.path / RUN_SUBFOLDER}"
    )
    return Result(
        metrics,
        [Check("share of held-out pairs that are right", test.accuracy, 1, 1)],
        {"grokking": grokking(history["step"], history["train/loss"], history["val/loss"], history["val/accuracy"])},
        {name.replace("/", "_"): torch.tensor(values, dtype=torch.float64) for name, values in history.items()},
        report,
    )


EXPERIMENT = Experiment(AdditionTrainingJob, result, last_addition_row)
