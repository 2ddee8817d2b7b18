"""The command line: each command is imported when it is called."""

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = [
    name for package in ("edgellm.cli", "edgellm.bench", "edgellm.converters") for name in collect_submodules(package)
]
