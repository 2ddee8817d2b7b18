"""ModelFolder: which files make up an ONNX model, and what the ones beside the graph say; for whoever runs it and for
whoever converts it.

    config.json  generation_config.json          Hugging Face's
    tokenizer.json  tokenizer_config.json  special_tokens_map.json  chat_template.jinja  chat_template.json
    genai_config.json                            onnxruntime-genai's: names of files, inputs and outputs
    modules.json  1_Pooling/config.json          sentence-transformers': how token vectors become one
    model.onnx  onnx/model_q4.onnx …             graphs, each with its data beside it

Of several graphs the folder means the one that genai_config.json names, else the one of transformers.js_config's dtype
in config.json. No name in a file leads out of the folder; links in it are followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.errors import InvalidModelFile, ModelNotFound, Unsupported
from edgellm.formats.confined import path_in
from edgellm.formats.strict_json import read_object, read_small

MAX_JSON = 16 << 20  # bytes of a configuration
MAX_NAMED = 20  # graphs that a message lists
DTYPES = {"fp32": "", "q8": "_quantized"}  # transformers.js: what a dtype adds to the name, else _DTYPE


@dataclass(frozen=True)
class ModelFolder:
    """root: the folder of the configuration. model: the .onnx file, in it or in its folder `onnx`. choice: why it is
    that one, and which others there are; "" where there was nothing to choose. The mappings are {} where their file is
    missing; genai is the object `model` of genai_config.json, and what special_tokens_map.json says is in
    tokenizer_config."""

    root: Path
    model: Path
    choice: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    genai: Mapping[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> Path | None:
        """A file of the folder, None if it is not there. Raises what `path_in` does."""
        path = path_in(self.root, name)
        return path if path.is_file() else None

    def text(self, name: str) -> str | None:
        """The text of a small file, None if it is not there. Raises InvalidModelFile."""
        raw = read_small(path_in(self.root, name), MAX_JSON)
        try:
            return None if raw is None else raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidModelFile(f"{self.root / name}: not UTF-8: {error}; fetch or write the file again") from None

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file, {} if it is not there. Raises InvalidModelFile."""
        return _json(self.root, name)


def find(path: Path) -> ModelFolder:
    """The model of a folder, or of a .onnx file whose folder (or the one above `onnx`) has its configuration.

    Raises ModelNotFound, InvalidModelFile, Unsupported when the folder holds several and does not say which.
    """
    if path.is_dir():
        root = path
    elif path.is_file():
        above = path.absolute().parent
        known = any((above / name).is_file() for name in ("config.json", "genai_config.json"))
        root = above.parent if above.name == "onnx" and not known else above
    else:
        raise ModelNotFound(f"{path}: no such file or folder")
    config, genai = _json(root, "config.json"), section(_json(root, "genai_config.json"), "model")
    model, choice = _choose(root, config, genai) if path.is_dir() else (path, "")
    return ModelFolder(
        root=root,
        model=model,
        choice=choice,
        config=config,
        generation=_json(root, "generation_config.json"),
        tokenizer_config=_tokenizer_config(root),
        genai=genai,
    )


def _tokenizer_config(root: Path) -> dict[str, Any]:
    """tokenizer_config.json and special_tokens_map.json. Where both name a token, transformers believes the first if it
    lists added tokens, as newer ones do, and the second otherwise."""
    config, named = _json(root, "tokenizer_config.json"), _json(root, "special_tokens_map.json")
    return {**named, **config} if "added_tokens_decoder" in config else {**config, **named}


def _choose(root: Path, config: Mapping[str, Any], genai: Mapping[str, Any]) -> tuple[Path, str]:
    """The graph that the folder means, and `choice`."""
    graphs = graphs_of(root)
    named = section(genai, "decoder").get("filename")
    if isinstance(named, str):
        model, source = path_in(root, named), "genai_config.json"
        if not model.is_file():
            raise ModelNotFound(f"{model}: genai_config.json names this file, and it is missing")
    elif not graphs:
        raise ModelNotFound(f"{root}: no .onnx file here or in its folder onnx")
    else:
        dtype = section(config, "transformers.js_config").get("dtype")
        if isinstance(dtype, Mapping):
            dtype = dtype.get("model")
        wanted = f"model{DTYPES.get(dtype, f'_{dtype}')}.onnx" if isinstance(dtype, str) else None
        meant = [graph for graph in graphs if graph.name == wanted]
        if not meant and len(graphs) > 1:
            names = _names(root, graphs)
            raise Unsupported(f"{root}: several models, no word on which one is meant; give one as the path: {names}")
        [graph] = meant[-1:] or graphs  # transformers.js looks in the folder onnx
        model, source = path_in(root, _names(root, [graph])), "transformers.js_config"
    others = _names(root, [graph for graph in graphs if graph != model])
    choice = f"{_names(root, [model])} is the model, as {source} says; the folder also holds {others}"
    return model, choice if others else ""


def _names(root: Path, graphs: list[Path]) -> str:
    return ", ".join(graph.relative_to(root).as_posix() for graph in graphs[:MAX_NAMED])


def graphs_of(root: Path) -> list[Path]:
    """Every .onnx file of the folder and of its folder onnx, in the order of their names."""
    found = [*sorted(root.glob("*.onnx")), *sorted((root / "onnx").glob("*.onnx"))]
    return [path for path in found if path.is_file() or path.is_symlink()]


def _json(root: Path, name: str) -> dict[str, Any]:
    return read_object(path_in(root, name), MAX_JSON) or {}


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under a key of a configuration, {} where there is none."""
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}
