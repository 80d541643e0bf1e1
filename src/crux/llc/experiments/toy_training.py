"""The learning coefficient along the training of a toy model: at checkpoints, for its own loss and for its behaviour.

Away from a minimum the coefficient of the model's own loss says nothing, and the report says so; that of the behavioural loss, which
counts the directions in which outputs change, is defined at every checkpoint.
"""

from crux.llc.experiments.toy_models import checkpoints, held_out, one_of, outputs_of, own_loss
from crux.llc.experiments.training_curves import Course, along_training
from crux.llc.losses import Fixed
from crux.llc.options import ToyTrainingJob
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder
from crux.toy.exact.best import losses
from crux.toy.experiments.programs import build_model_program
from crux.toy.folder import find_toy_model
from crux.toy.job import train
from crux.toy.program import Trained, load
from crux.toy.training import last_row as last_row_of_programs


def last_row(folder: RunFolder) -> int:
    """Return the last row of a training that is done, or of the part that its checkpoint holds."""
    return last_row_of_programs(folder, ["model"], max_steps=int(folder.read_config()["trainer"]["max_steps"]))


def toy_model(job: ToyTrainingJob, run: ActiveRun) -> tuple[Trained, int]:
    """Return the model of model.path, or one that is trained here; and the number of the instance, the best one unless given."""
    if job.model.path is not None:
        model = load(find_toy_model(job.model.path))
    else:
        program = build_model_program(job.toy, seed=run.seed)
        model = train(job, program, run, n_before=0)
    return model, int(losses(model).flatten().argmin()) if job.model.instance is None else job.model.instance


def result(job: ToyTrainingJob, run: ActiveRun) -> Result:
    """Estimate at checkpoints of the training: see `along_training`."""
    llc = job.llc
    model, index = toy_model(job, run)
    program = one_of(model.program, index)
    own = own_loss(program, samples=llc.samples)
    how = "exact" if own.exact else f"that on {llc.samples} samples"
    course = Course(
        checkpoints=checkpoints(model, index, n=llc.checkpoints),
        own=own.loss,
        own_data=own.data,
        outputs=outputs_of(program),
        data=Fixed(held_out(program, llc.samples)),
        about=f"instance {index} of {model.program.name}; its loss is {how}",
        loss_label="loss, exact" if own.exact else "loss on the samples",
        max_steps=job.trainer.max_steps,
    )
    return along_training(llc, run, course)


EXPERIMENT = Experiment(ToyTrainingJob, result, last_row)
