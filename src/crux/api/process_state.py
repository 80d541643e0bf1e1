"""Keep a job from changing the state of the Python process that it runs in."""

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def restore_process_state() -> Iterator[None]:
    """Restore, after the block, everything global that a job or its libraries change.

    These are signal handlers (Lightning ignores SIGINT after Ctrl-C), environment variables, torch's threads and default dtype, random
    generators, the settings of existing loggers, and warning filters.
    """
    with ExitStack() as stack:
        stack.callback(_restore_environment, dict(os.environ))
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_initialized():
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(warnings.catch_warnings())
        for logger in (logging.root, *_loggers()):
            stack.callback(
                _restore_logger, logger, logger.level, logger.disabled, logger.propagate, list(logger.handlers)
            )
        if threading.current_thread() is threading.main_thread():  # no other thread may set signal handlers
            for number in SIGNALS:
                stack.callback(signal.signal, number, signal.getsignal(number))
        yield


def _restore_environment(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


def _loggers() -> list[logging.Logger]:
    # if only loggers below a name exist, `getLogger` makes the one with that name too, so that it is restored if the job changes it
    return [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]


def _restore_logger(
    logger: logging.Logger, level: int, disabled: bool, propagate: bool, handlers: list[logging.Handler]
) -> None:
    logger.setLevel(level)
    logger.disabled, logger.propagate, logger.handlers = disabled, propagate, handlers
