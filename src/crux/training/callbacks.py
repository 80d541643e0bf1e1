"""Create the Lightning callbacks that the configuration names."""

from collections.abc import Mapping
from typing import Any

import lightning as L

from crux.config.targets import make_object


def make_callbacks(options: Mapping[str, Any]) -> list[L.Callback]:
    """Create the callbacks of the section `callbacks`; each names its class by `_target_`, with the arguments next to it.

    Raises:
        UserError: if one cannot be created, or is not a Lightning callback.
    """
    return [make_object(arguments, key=f"callbacks.{name}", base=L.Callback) for name, arguments in options.items()]
