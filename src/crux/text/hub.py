"""A data set of the Hugging Face hub, streamed row by row."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Integer

from crux.config.errors import UserError
from crux.config.hub import hub_unreachable
from crux.text.readers import COLUMNS

PATIENCE = 3.0  # seconds for the probe


def hub_documents(
    name: str, *, config: str | None, split: str, revision: str | None, column: str | None
) -> Iterator[str | Integer[np.ndarray, "pos"]]:
    """The rows of one split: texts, or token ids where the column holds lists; null ones are passed over.

    Raises:
        UserError: no network, no such data set, config, split or column.
    """
    if why := hub_unreachable(seconds=PATIENCE):
        raise UserError(
            f"data set {name}: no Hugging Face hub within reach ({why}); use data=packaged, or download its Parquet "
            "files elsewhere and give their folder as data.path"
        )
    from datasets import load_dataset  # seconds to import

    try:
        rows = load_dataset(name, config, split=split, revision=revision, streaming=True)
    except (OSError, RuntimeError, ValueError) as e:  # not there, gated, a script, no such config or split
        raise UserError(f"data set {name}: {' '.join(str(e).split())}") from None
    try:
        for number, row in enumerate(rows):
            wanted = column or next((c for c in COLUMNS if c in row), COLUMNS[0])
            match row.get(wanted):
                case str(text):
                    yield text
                case list() | np.ndarray() as ids:
                    yield _ids(ids, where=f"data set {name}, row {number}, {wanted!r}")
                case None if wanted in row:
                    continue
                case _:
                    raise UserError(
                        f"data set {name}: no column {wanted!r} of texts or token ids; there are: {', '.join(row)} "
                        "(data.column chooses one)"
                    )
    except (OSError, RuntimeError) as e:  # the connection broke
        raise UserError(f"data set {name}: {' '.join(str(e).split())}") from None


def _ids(values: object, *, where: str) -> Integer[np.ndarray, "pos"]:
    ids = np.asarray(values)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise UserError(f"{where}: neither a text nor a list of token ids")
    return ids.astype(np.int64)
