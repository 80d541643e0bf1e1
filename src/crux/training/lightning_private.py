"""The only use of Lightning's private interface; tests/training/test_lightning_private.py checks that it still works."""

import lightning as L


def skip_sigterm_broadcast(trainer: L.Trainer) -> None:
    """Keep the processes of a run from asking each other before every batch whether one of them has received SIGTERM.

    That exchange would wait for the device in every step. Only the first process reacts to SIGTERM, and the others end with it.
    """

    def do_nothing() -> None:
        return

    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = do_nothing
