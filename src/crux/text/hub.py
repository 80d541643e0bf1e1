"""Stream the rows of a data set on the Hugging Face hub, spread over its files."""

from collections.abc import Iterator
from typing import Any

from crux.config.errors import UserError
from crux.config.hub import explain_unreachable_hub
from crux.text.cells import Row, choose_column, read_row
from crux.text.demand import Demand
from crux.text.splits import choose_splits

PROBE_SECONDS = 3.0  # longest wait for the check whether the hub can be reached
MAX_PARTS = 200  # each costs some requests; 100 million tokens are half a million of each


def hub_rows(
    name: str, config: str | None, split: str, revision: str | None, column: str | None, held_out_split: str | None,
    *, demand: Demand,
) -> Iterator[tuple[Row, bool | None]]:  # fmt: skip
    """Yield the rows of the splits to train on and to hold out, with True or False for the latter, or None if there is only one.

    The size of a data set on the hub is unknown, and it may be terabytes. Its rows are therefore read from at most 200 parts, evenly
    spaced over all of it, each giving the same number of tokens, from its beginning. Parts are the row groups of its Parquet files, or
    files, if it has more than 200 of them or they are of another format. More is read only if that is not enough.

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
        splits: Any = load_dataset(name, config, revision=revision, streaming=True)
    except (OSError, RuntimeError, ValueError) as e:  # missing, gated, needs a script, or no such config
        raise UserError(f"data set {name}: {' '.join(str(e).split())}") from None
    train, held_out = choose_splits(list(splits), split=split, held_out_split=held_out_split, where=f"data set {name}")
    assert train is not None
    try:
        for chosen, side in ((train, None if held_out is None else False), (held_out, True)):
            if chosen is not None:
                for row in _spread_rows(splits[chosen], name=name, column=column, demand=demand, side=side):
                    yield row, side
    except (OSError, RuntimeError) as e:  # the connection broke
        raise UserError(f"data set {name}: {' '.join(str(e).split())}") from None


def _spread_rows(rows: Any, *, name: str, column: str | None, demand: Demand, side: bool | None) -> Iterator[Row]:
    """Yield rows of every part in turn until there are enough; go on with what is left of the parts if there are not."""
    if rows.num_shards <= MAX_PARTS and hasattr(rows, "reshard"):  # which reads the metadata of every file
        rows = rows.reshard()
    n_parts, number = rows.num_shards, 0
    n_first = min(n_parts, MAX_PARTS)
    first = [i * n_parts // n_first for i in range(n_first)]
    n_read, ended = dict.fromkeys(range(n_parts), 0), set[int]()
    parts = first
    while parts and not demand.is_complete(held_out=side):
        for part in parts:
            demand.begin(1 / len(parts), held_out=side)
            for row in rows.shard(num_shards=n_parts, index=part).skip(n_read[part]):
                number, n_read[part] = number + 1, n_read[part] + 1
                where = f"data set {name}, file or row group {part}, row {n_read[part]}"
                if choose_column(row, column) not in row:
                    raise UserError(
                        f"data set {name}: no column {choose_column(row, column)!r} of texts or token ids; there are: "
                        f"{', '.join(row)} (data.column chooses one)"
                    )
                yield read_row(row, column=column, number=number, where=where)
                if demand.is_met():
                    break
            else:
                ended.add(part)
        parts = [i for i in range(n_parts) if i not in ended]
