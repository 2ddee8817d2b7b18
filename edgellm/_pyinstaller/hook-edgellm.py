"""The library: rooms that are imported by name, on first use, the catalog, and versions of the engines.

The command line and the server come only with programs that import them: hook-edgellm.cli.py, hook-edgellm.serve.py.
So do jobs, which bring parts of the server: who calls edgellm.batch imports edgellm.jobs.rows.
"""

from importlib.metadata import PackageNotFoundError

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

APART = (
    "edgellm.__main__",
    "edgellm._pyinstaller",
    "edgellm.bench",
    "edgellm.cli",
    "edgellm.converters",
    "edgellm.jobs",
    "edgellm.serve",
)

hiddenimports = [
    *collect_submodules("edgellm", filter=lambda name: not name.startswith(APART)),
    "huggingface_hub.hf_api",  # behind names that huggingface_hub resolves itself
]
datas = collect_data_files("edgellm", includes=["**/*.toml"])
for name in ("edgellm", "llama-cpp-python", "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"):
    try:
        datas += copy_metadata(name)
    except PackageNotFoundError:
        continue
