"""Remove what killed processes have left in the folder of all runs. Living processes hold locks, also on other machines."""

import shutil
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from crux.runs.lock import NAME, LockedError, lock_folder
from crux.runs.run_folder import RunFolder


def remove_leftovers(outputs: Path) -> None:
    """Remove the hidden folders of runs that never started, and what is left in the folders of finished runs.

    What is left in the folder of an unfinished run is removed when that run is continued.
    """
    place = outputs / "runs"
    for hidden in [*place.glob(".*.new"), *place.glob(".*.old")]:
        with suppress(FileNotFoundError, LockedError), lock_folder(hidden, what="a new run") as lock:
            lock.rename(hidden.with_name(f".{token_hex(8)}.old"))  # whoever has just made it can no longer lock it
            shutil.rmtree(lock.folder)
    for file in place.glob(f"*/{NAME}"):
        run = RunFolder(file.parent)
        if run.done:
            with suppress(FileNotFoundError, LockedError), lock_folder(run.path, what=f"run {run.path.name}"):
                run.remove_leftovers()
