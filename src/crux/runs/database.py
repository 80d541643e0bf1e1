"""The sqlite database of MLflow: created under another name and renamed when it is complete, repaired, and checked for writing."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

LOCK_SECONDS = 10.0
"""Seconds to wait for another process to release the database."""

CREATION_SECONDS = 300.0
"""Seconds to wait for another process to create the database."""


def prepare_database(path: Path) -> None:
    """Create the database if there is none, repair a half-created one, and check that it can be written.

    MLflow creates its tables in many steps, and a process that is killed between two of them leaves a database that MLflow can neither
    use nor complete. The new database therefore gets its name only when it is complete. One process at a time does this. In WAL mode
    several jobs can write at the same time (docs/reference/libraries.md §3).

    Raises:
        Timeout, sqlite3.Error, MlflowException, OSError: if the database cannot be created, read or written.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=CREATION_SECONDS):
        for leftover in path.parent.glob(f".{path.name}.new*"):  # of a process that was killed here
            leftover.unlink()
        if _is_empty(path) or _is_half_created(path):
            _create(path)
        _check_write_lock(path)


def _is_empty(path: Path) -> bool:
    return not path.exists() or path.stat().st_size == 0 or not _tables(path)


def _is_half_created(path: Path) -> bool:
    """Return True if the creation of the tables was interrupted: they are not those of this version, and there is no run yet."""
    tables = _tables(path)
    if "alembic_version" in tables and not any(name.startswith("_alembic_tmp_") for name in tables):
        versions = [str(version) for (version,) in _query(path, "SELECT version_num FROM alembic_version")]
        if versions and _is_complete(versions, tables):
            return False
    foreign = "experiments" not in tables and "alembic_version" not in tables  # not MLflow's: must not be replaced
    return not foreign and ("runs" not in tables or not _query(path, "SELECT 1 FROM runs LIMIT 1"))


def _is_complete(versions: Sequence[str], tables: Sequence[str]) -> bool:
    """Return True if the schema is the newest one that the installed MLflow knows, or one that it does not know (a newer MLflow's)."""
    newest, known = _schema_versions()
    return any(version in newest or version not in known for version in versions) and "runs" in tables


@cache
def _schema_versions() -> tuple[frozenset[str], frozenset[str]]:
    """Return the newest version of the schema of the installed MLflow, and all versions that it knows."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    config = Config()
    config.set_main_option("script_location", db_migrations.__path__[0].replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    return frozenset(script.get_heads()), frozenset(revision.revision for revision in script.walk_revisions())


def _create(path: Path) -> None:
    """Create a complete database and move it to its place; what was there before is kept as `<name>.half-created`."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f".{path.name}.new")
    store = SqlAlchemyStore(f"sqlite:///{new.resolve()}", (path.parent.resolve() / "artifacts").as_uri())
    store.engine.dispose()  # closes the file, which is to be renamed
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    for ending in ("-wal", "-shm"):  # of a deleted database: sqlite would apply them to the new one
        path.with_name(path.name + ending).unlink(missing_ok=True)
    if path.exists() and path.stat().st_size:
        path.replace(path.with_name(f"{path.name}.half-created"))
    new.replace(path)


def _check_write_lock(path: Path) -> None:
    """Switch the database to WAL mode and check that it can be locked for writing. MLflow's client would retry for minutes."""
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def _tables(path: Path) -> list[str]:
    return [str(name) for (name,) in _query(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]


def _query(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()
