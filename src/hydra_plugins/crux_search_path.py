"""Where Hydra looks for options besides conf/: the named sweeps, and the conf/ folders of installed plug-ins."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from crux.config.paths import ROOT
from crux.config.registry import plugin_folders


class CruxSearchPath(SearchPathPlugin):
    """Puts them on Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("crux", f"file://{ROOT}")  # makes <root>/sweeps/*.yaml the group `sweeps`
        for folder in plugin_folders():
            search_path.append("crux-plugins", f"file://{folder}")
