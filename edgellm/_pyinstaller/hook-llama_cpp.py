"""llama.cpp: libraries that are opened by name, and backends that it looks for beside them."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("llama_cpp", search_patterns=["*.dll", "*.dylib", "*.so"])
