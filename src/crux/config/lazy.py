"""Exports of a package that are imported when they are first used, so that importing the package stays quick."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


def lazy_exports(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose `__all__` is imported on first use; `dir` lists nothing else.

    The package says where its exports come from in a block `if TYPE_CHECKING:`, with statements `from module import name`. Type checkers
    read that block, and so does `__getattr__`.
    """

    def get_attribute(name: str) -> object:
        module = sys.modules[package]
        if name in module.__all__:
            if "IPython" in sys.modules:
                import_module("crux.config.notebook_bars").import_tqdm_quietly()
            value = getattr(import_module(_origins(Path(module.__file__ or ""))[name]), name)
            setattr(module, name, value)
            return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def list_names() -> list[str]:
        return list(sys.modules[package].__all__)

    return get_attribute, list_names


def _origins(file: Path) -> dict[str, str]:
    """Return the module of each name that the file imports under `if TYPE_CHECKING:`."""
    blocks = [node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}
