"""Read a YAML file that crux has written: plain keys and values, without references."""

from pathlib import Path
from typing import Any

import yaml

from crux.config.errors import UserError


class _PlainLoader(yaml.SafeLoader):
    """A safe loader that refuses references, with which a short file can describe an endless or enormous content."""

    def compose_node(self, parent: yaml.Node | None, index: int | yaml.Node | None) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has references, which crux never writes")
        return super().compose_node(parent, index)  # pyright: ignore[reportArgumentType]


def read_plain_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        UserError: if the file cannot be read, or has no keys.
    """
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=_PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (RecursionError, ValueError, OverflowError) as error:  # such as a date that does not exist
        raise UserError(f"{path} cannot be read (it is damaged)") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} cannot be read (it has no keys)")
    return content
