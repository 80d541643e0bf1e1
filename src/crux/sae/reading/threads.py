"""Independent pieces of work of numpy and scipy, which use one thread each, on all threads that the process may use."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from crux.config.progress import track

Item = TypeVar("Item")
Found = TypeVar("Found")


def map_in_threads(function: Callable[[Item], Found], items: Sequence[Item], description: str) -> list[Found]:
    """Return the function's results for all items, in their order, and show how many are done; there are as many threads as torch uses."""
    n_threads = min(torch.get_num_threads(), len(items))
    if n_threads <= 1:
        return [function(item) for item in track(items, description)]
    with ThreadPoolExecutor(n_threads) as pool:
        waiting = [pool.submit(function, item) for item in items]
        try:
            return [one.result() for one in track(waiting, description)]
        finally:
            for one in waiting:  # after an error or Ctrl-C, only what has begun is finished
                one.cancel()
