"""Trains the modular-addition network by itself; other experiments read it by `model.path`."""

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
    """Train until the network is right on every pair that it never saw; report losses and accuracy over the steps."""
    network, tokens = train_in_run(
        job.interaction_basis.addition,
        optimizer=job.optimizer,
        trainer=job.trainer,
        callbacks=job.callbacks,
        run=run,
    )
    train, test = evaluate_addition(network, tokens.train), evaluate_addition(network, tokens.test)
    rows = [row for row in run.folder.read_history() if "val/accuracy" in row]
    course = {name: [row[name] for row in rows] for name in ("step", "train/loss", "val/loss", "val/accuracy")}
    steps = course["step"][-1] if rows else 0.0
    metrics = {"steps": steps, "accuracy": test.accuracy, "train_accuracy": train.accuracy}
    metrics |= {"loss": test.loss, "train_loss": train.loss}
    report = (
        f"{steps:.0f} steps; held-out pairs right: {test.accuracy:.4f}, their loss {test.loss:.3g}, that of the training pairs "
        f"{train.loss:.3g} nats.\nThe network: model.path={run.folder.path / RUN_SUBFOLDER}"
    )
    return Result(
        metrics,
        [Check("share of held-out pairs that are right", test.accuracy, 1, 1)],
        {"grokking": grokking(course["step"], course["train/loss"], course["val/loss"], course["val/accuracy"])},
        {name.replace("/", "_"): torch.tensor(values, dtype=torch.float64) for name, values in course.items()},
        report,
    )


EXPERIMENT = Experiment(AdditionTrainingJob, result, last_addition_row)
