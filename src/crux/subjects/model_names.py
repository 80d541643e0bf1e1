"""The names by which models are known: on the hub, and in TransformerLens. Torch-free."""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_ALIASES = Path("tools", "model_registry", "data", "model_aliases.json")
"""TransformerLens's table of names on the hub and its own short names, in its package."""


def hub_name(name: str) -> str:
    """Return the name on the hub of a model with a short name of TransformerLens, such as `gpt2` for `gpt2-small`; else the name itself."""
    return _read_aliases().get(name.lower(), name)


@cache
def _read_aliases() -> dict[str, str]:
    """Return TransformerLens's short names, in lower case, with the names on the hub. The package is not imported, which takes seconds."""
    spec = find_spec("transformer_lens")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / _ALIASES).is_file():
            names = json.loads(path.read_text("utf-8"))["aliases"]
            return {short.lower(): official for official, aliases in names.items() for short in aliases}
    return {}
