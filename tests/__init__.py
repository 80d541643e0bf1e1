"""The tests of crux, in folders like those of src/crux/."""

import pytest

pytest.register_assert_rewrite("tests.support")  # a failing assert there shows its values, too
