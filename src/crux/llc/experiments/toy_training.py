"""The learning coefficient along the training of a toy model: at checkpoints, for its own loss and for its behaviour.

Away from a minimum the coefficient of the model's own loss says nothing, and is said to; that of the behavioural loss, which counts the
directions in which outputs change, is defined at every checkpoint.
"""

from pathlib import Path

from crux.config.errors import UserError
from crux.config.schema import Config
from crux.llc.experiments.sampling import keys, nbetas
from crux.llc.experiments.toy_models import checkpoints, held_out, one_of, outputs_of, own_loss, stacked_weights
from crux.llc.experiments.training_curves import along_training
from crux.llc.losses import Fixed
from crux.runs.experiment import AddRow
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder
from crux.toy.exact.best import losses
from crux.toy.experiments.programs import over_densities
from crux.toy.experiments.training import train
from crux.toy.folder import toy_folder
from crux.toy.program import Trained, load
from crux.training.fit import checkpoint_step

PROGRAM = "model"
"""Folder of the model that the experiment trains itself."""


def last_row(job: RunFolder) -> int:
    """The rows of a training that is done, or of the part that its checkpoint holds."""
    folder = job.programs / PROGRAM
    if (folder / "model.safetensors").exists():
        return int(job.config()["trainer"]["max_steps"])
    return checkpoint_step(folder / "checkpoints" / "last.ckpt")


def toy_model(config: Config, job: RunFolder, add_row: AddRow) -> tuple[Trained, int]:
    """The model of model.path, or one that is trained here; and which of its instances, the best one where that is not said.

    Raises:
        UserError: where the folder holds no toy model, or not that instance.
    """
    if config.model.path is not None:
        folder = toy_folder(Path(config.model.path))
        if folder is None:
            raise UserError(f"model.path={config.model.path}: must be the run folder of a toy experiment")
        found = load(folder)
    else:
        found = train(over_densities(config), config, folder=job.programs / PROGRAM, add_row=add_row)
    n = found.program.importance.shape[:2].numel()
    index = int(losses(found).flatten().argmin()) if config.model.instance is None else config.model.instance
    if not 0 <= index < n:
        raise UserError(f"model.instance={index}: the model has {n}, 0 to {n - 1}")
    return found, index


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """See `along_training`."""
    llc = keys(config)
    assert llc.checkpoints is not None
    assert llc.samples is not None
    model, index = toy_model(config, job, add_row)
    program, kept = one_of(model.program, index), checkpoints(model, index, n=llc.checkpoints)
    own = own_loss(program, samples=llc.samples)
    how = "exact" if own.exact else f"that on {llc.samples} samples"
    return along_training(
        config,
        add_row,
        steps=list(kept),
        params=stacked_weights(kept, repeat=len(nbetas(llc))),
        own=own.loss,
        own_data=own.data,
        outputs=outputs_of(program),
        data=Fixed(held_out(program, llc.samples)),
        about=f"instance {index} of {model.program.name}; its loss is {how}",
        loss_label="loss, exact" if own.exact else "loss on the samples",
    )
