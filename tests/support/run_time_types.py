"""The type checker that jaxtyping's import hook puts on every function of crux, in tests only."""

import warnings
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as for pyright


def check_types(defined: Any) -> Any:
    """Return a function or dataclass of crux that checks its arguments when it is called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)  # OmegaConf's own base classes
        return _beartype(defined)
