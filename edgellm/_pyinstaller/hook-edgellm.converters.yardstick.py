"""The text that a conversion is measured with."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("edgellm.converters", includes=["*.txt"])
