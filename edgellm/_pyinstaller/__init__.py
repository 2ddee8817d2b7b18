"""Hooks for PyInstaller: what a frozen program needs of edgellm that PyInstaller does not see by itself.

Found through the entry point `pyinstaller40` of the installed package; nothing has to be named in a .spec file.
https://pyinstaller.org/en/stable/hooks.html
"""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    return [str(Path(__file__).parent)]
