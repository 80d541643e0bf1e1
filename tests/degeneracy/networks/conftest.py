"""The random subjects of tests/subjects."""

from tests.subjects.conftest import subject_folder

__all__ = ["subject_folder"]
