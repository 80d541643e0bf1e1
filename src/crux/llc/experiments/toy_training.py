"""The learning coefficient at checkpoints of a toy model's training, for its training loss and for its behavioural loss.

Away from a minimum, the coefficient of the training loss has no meaning, and the report says so. That of the behavioural loss, which counts
the directions in which outputs change, is defined at every checkpoint.
"""

from crux.llc.experiments.toy_models import (
    checkpoint_weights,
    held_out_samples,
    instance_program,
    toy_outputs,
    training_loss,
)
from crux.llc.experiments.training_curves import TrainingCourse, estimate_along_training
from crux.llc.losses import FixedData
from crux.llc.options import ToyTrainingJob
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder
from crux.toy.exact.best import instance_losses
from crux.toy.experiments.programs import build_model_program
from crux.toy.folder import find_toy_model
from crux.toy.job import train_job_program
from crux.toy.program import TrainedProgram, load_program
from crux.toy.training import last_row_of_programs


def last_training_row(folder: RunFolder) -> int:
    """Return the last history row of a finished training, or of the part that its checkpoint contains."""
    return last_row_of_programs(folder, ["model"], max_steps=int(folder.read_config()["trainer"]["max_steps"]))


def load_or_train(job: ToyTrainingJob, run: ActiveRun) -> tuple[TrainedProgram, int]:
    """Load the model of `model.path` or else train one; return it with the index of the given or the best instance."""
    if job.model.path is not None:
        model = load_program(find_toy_model(job.model.path))
    else:
        program = build_model_program(job.toy, seed=run.seed)
        model = train_job_program(job, program, run, n_before=0)
    return model, int(instance_losses(model).flatten().argmin()) if job.model.instance is None else job.model.instance


def result(job: ToyTrainingJob, run: ActiveRun) -> Result:
    """Estimate at checkpoints of the training; see `estimate_along_training`."""
    llc = job.llc
    model, index = load_or_train(job, run)
    program = instance_program(model.program, index)
    loss = training_loss(program, samples=llc.samples)
    loss_text = "exact" if loss.exact else f"that on {llc.samples} samples"
    course = TrainingCourse(
        checkpoints=checkpoint_weights(model, index, n=llc.checkpoints),
        training_loss=loss.loss,
        training_data=loss.data,
        outputs=toy_outputs(program),
        data=FixedData(held_out_samples(program, llc.samples)),
        about=f"instance {index} of {model.program.name}; its loss is {loss_text}",
        loss_label="loss, exact" if loss.exact else "loss on the samples",
        max_steps=job.trainer.max_steps,
    )
    return estimate_along_training(llc, run, course)


EXPERIMENT = Experiment(ToyTrainingJob, result, last_training_row)
