"""Hydra's search path, extended by the conf/ folders of installed plug-ins."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from crux.config.registry import plugin_folders


class CruxSearchPath(SearchPathPlugin):
    """A Hydra plugin that adds the conf/ folders of plug-ins to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in plugin_folders():
            search_path.append("crux-plugins", f"file://{folder}")
