"""The private parts of Lightning that crux uses still exist."""

import lightning as L

from crux.training.lightning_private import skip_sigterm_broadcast


def test_lightning_still_calls_the_function_that_crux_replaces() -> None:
    """`Trainer.fit` calls the function that `skip_sigterm_broadcast` replaces, if a run has several processes."""
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    loop = trainer.fit_loop.epoch_loop
    advice = (
        f"Lightning {L.__version__} no longer broadcasts SIGTERM in _TrainingEpochLoop._broadcast_sigterm_tensor: look in "
        "lightning/pytorch/loops/training_epoch_loop.py whether anything still waits for the device before every batch of a "
        "run with several processes; if not, delete crux/training/lightning_private.py, otherwise replace that function"
    )
    assert "_broadcast_sigterm_tensor" in type(loop).advance.__code__.co_names, advice
    before = loop._broadcast_sigterm_tensor
    skip_sigterm_broadcast(trainer)
    assert loop._broadcast_sigterm_tensor is not before
    assert loop._broadcast_sigterm_tensor() is None
