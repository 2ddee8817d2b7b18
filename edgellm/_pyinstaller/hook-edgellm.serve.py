"""The server: its page, and what uvicorn imports by name."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

hiddenimports = [name for package in ("edgellm.serve", "uvicorn") for name in collect_submodules(package)]
datas = collect_data_files("edgellm.serve", includes=["page/**/*"])
