"""Puts the shipped configs into the wheel; an editable install reads them where they are."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedConfigs(BuildHookInterface):
    """Adds ``configs/*.py`` to the wheel as files of the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # In an editable install, a folder goat_jax in site-packages would hide the package.
        if version != "editable":
            for file in sorted(Path(self.root, "configs").glob("*.py")):
                build_data["force_include"][str(file)] = f"goat_jax/configs/{file.name}"
