"""Stream the rows of a data set on the Hugging Face hub."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Integer

from crux.config.errors import UserError
from crux.config.hub import explain_unreachable_hub
from crux.text.readers import COLUMNS

PROBE_SECONDS = 3.0  # longest wait for the check whether the hub can be reached


def hub_documents(
    name: str, *, config: str | None, split: str, revision: str | None, column: str | None
) -> Iterator[str | Integer[np.ndarray, "pos"]]:
    """Yield the rows of one split as texts, or as token ids if the column holds lists; skip null rows.

    Raises:
        UserError: if there is no network or no such data set, config, split or column.
    """
    if why := explain_unreachable_hub(seconds=PROBE_SECONDS):
        raise UserError(
            f"data set {name}: the Hugging Face hub cannot be reached ({why}); use data=packaged, or download its Parquet "
            "files elsewhere and give their folder as data.path"
        )
    from datasets import load_dataset  # seconds to import

    try:
        rows = load_dataset(name, config, split=split, revision=revision, streaming=True)
    except (OSError, RuntimeError, ValueError) as e:  # missing, gated, needs a script, or no such config or split
        raise UserError(f"data set {name}: {' '.join(str(e).split())}") from None
    try:
        for number, row in enumerate(rows):
            name_of_column = column or next((c for c in COLUMNS if c in row), COLUMNS[0])
            match row.get(name_of_column):
                case str(text):
                    yield text
                case list() | np.ndarray() as ids:
                    yield _convert_ids(ids, where=f"data set {name}, row {number}, {name_of_column!r}")
                case None if name_of_column in row:
                    continue
                case _:
                    raise UserError(
                        f"data set {name}: no column {name_of_column!r} of texts or token ids; there are: {', '.join(row)} "
                        "(data.column chooses one)"
                    )
    except (OSError, RuntimeError) as e:  # the connection broke
        raise UserError(f"data set {name}: {' '.join(str(e).split())}") from None


def _convert_ids(values: object, *, where: str) -> Integer[np.ndarray, "pos"]:
    """Return a list of token ids as an array; raise UserError if it is none."""
    ids = np.asarray(values)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise UserError(f"{where}: neither a text nor a list of token ids")
    return ids.astype(np.int64)
