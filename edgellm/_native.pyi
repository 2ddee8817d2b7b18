"""What edgellm needs from C. Built from native/ by CMakeLists.txt."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

Floats = NDArray[np.float32]

discard_log: int
"""Address of a C function in the shape of ggml_log_callback that forgets the line; safe after the interpreter ended."""

onnx_domain: str
"""The domain of edgellm's operators in ONNX graphs. This module's file is the library that ONNX Runtime registers them
from."""

class AbortFlag:
    """A flag that any thread raises and native code reads, without Python in between.

    For `llama_context_params.abort_callback` and its data. The object must outlive the context that reads it.
    """

    def __init__(self) -> None: ...
    def set(self) -> None:
        """Ask the pass in flight to stop."""

    def clear(self) -> None:
        """Take the request back."""

    @property
    def is_set(self) -> bool: ...
    @property
    def callback(self) -> int:
        """Address of `bool fn(void *data)`, which reads the flag."""

    @property
    def data(self) -> int:
        """Address of the flag, for the `data` of `callback`."""

class KvFull(Exception):
    """The pages of a KV cache are used up; nothing changed."""

class KvPages:
    """The pages of a KV cache, of 32 tokens each, made when they are needed. Safe from any thread.

    kv_type: "int16" or "int8" (codes with a float32 scale for the key and one for the value of a token in a head), or
    "f32". size: of a head, a multiple of 16 up to 256. most: pages that may be used at once. ValueError for a shape
    that cannot be.
    """

    def __init__(self, layers: int, kv_heads: int, size: int, kv_type: str, most: int) -> None: ...
    @property
    def used(self) -> int:
        """Pages that some table holds."""

    @property
    def most(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Memory that is set aside, in use or not; the system gives it when it is touched."""

    @property
    def page_bytes(self) -> int: ...

StateInFile = tuple[int, int, int, int]
"""The state of a block in an open file: descriptor, which stands where it begins; bytes; CRC-32 of what is before it in
the block; CRC-32 of all of the block."""

class KvTable:
    """The state of one sequence: a table of pages, shared with others until it writes into them.

    Positions that it does not have are ValueError; every call but `close` on one that was closed is RuntimeError, and
    every call while another thread uses it, in a pass for instance.
    """

    def __init__(self, pages: KvPages) -> None: ...
    @property
    def length(self) -> int:
        """Tokens that it holds; 0 after `close`."""

    def reserve(self, length: int) -> None:
        """Make sure that so many tokens fit. KvFull, MemoryError; then nothing changed."""

    def truncate(self, length: int) -> None:
        """Keep the first tokens."""

    def fork(self, length: int) -> KvTable:
        """Another one with the same first tokens. It takes no page until one of the two goes on."""

    def save(self, start: int, stop: int, head: bytes = b"") -> bytearray:
        """`head`, and behind it the state of the positions [start, stop), which `load` takes back exactly.

        Each token takes `page_bytes` / 32. Whole pages lie in it as they are; parts of pages token after token.
        """

    def load(self, blocks: Sequence[Buffer | StateInFile], stops: Sequence[int], threads: int = 1) -> None:
        """Append saved states, the first from `length` to stops[0]: all of them, or none. Reserves what is missing.

        The interpreter lock is released, and so many threads of those that compute passes share the work. ValueError
        for bytes of another size and for a file that is not what was written, OSError for one that cannot be read; what
        `reserve` raises. Numbers that are not finite become 0, and scales that are too large.
        """

    def close(self) -> None:
        """Let go of its pages. Twice is harmless."""

class PassInterrupted(Exception):
    """The abort flag was raised during a pass; every sequence is as long as before."""

class DenseModel:
    """A decoder: norms, grouped attention and a feed-forward network, or experts, in layers.

    Lengths are those of `edgellm.architectures.hyper.Hyper`; n_ff is that of one expert where there are any.
    activation: "silu", "gelu_tanh" or "gelu". windows: for each layer the keys that a query sees, itself among them, 0
    for all. rotations: for each layer the kind of its rotation, 0 for none. Soft caps are 0 where there is none; logits
    are divided by logit_scale. micro_batch: tokens that go through the layers at once. kernels: a name of
    `kernel_sets`, the fastest one where it is None.

    Then its weights are set, and `finish` is called. ValueError names what cannot be, and what is missing.
    """

    def __init__(
        self,
        *,
        n_layer: int,
        n_embd: int,
        n_ff: int,
        n_head: int,
        n_head_kv: int,
        head_dim: int,
        n_vocab: int,
        n_expert: int = 0,
        n_expert_used: int = 0,
        norm_eps: float,
        activation: str,
        attention_scale: float,
        attention_softcap: float = 0.0,
        final_softcap: float = 0.0,
        embedding_scale: float = 1.0,
        residual_scale: float = 1.0,
        logit_scale: float = 1.0,
        parallel_residual: bool = False,
        windows: list[int],
        rotations: list[int],
        threads: int,
        micro_batch: int = 512,
        kernels: str | None = None,
    ) -> None: ...
    def set_matrix(
        self,
        layer: int,
        role: str,
        type: int,
        rows: int,
        columns: int,
        data: Buffer | tuple[int, int, int],
        order: NDArray[np.int64] | None = None,
    ) -> None:
        """Lay out a matrix, by all threads, without the interpreter lock.

        layer: -1 for those of the whole model, "token_embd", "position_embd" if there is one, and "output" (without
        which it is the embedding); else role is "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate" (without which
        the network has no gate), "ffn_up" or "ffn_down"; of experts
        "ffn_gate_inp", their router, and "ffn_gate_exps", "ffn_up_exps" and "ffn_down_exps", the rows of all of them.
        type: GGUF's id. data: the bytes of its rows, as they lie in the file, or where they do: the descriptor of the
        open file, the first byte and how many. order: which of these rows each row is.
        ValueError, also for scales that are not finite and for a file that ends before; MemoryError.
        """

    def set_vector(self, layer: int, role: str, values: Floats) -> None:
        """A norm: "output_norm" of the whole model, and those that a layer has of "attn_norm", "attn_q_norm" and
        "attn_k_norm" (of a head, or of all of them), "post_attention_norm", "ffn_norm" and "post_ffw_norm". Or the bias
        of a matrix: its role and ".bias", in the order of the rows in memory. Or that of a norm, which then takes the
        mean away, too."""

    def set_rotation(self, kind: int, frequencies: NDArray[np.float64], magnitude: float = 1.0) -> None:
        """The layers of this kind turn the numbers i and i + n of a head, i < n = len(frequencies), by the angle
        position * frequencies[i]; cos and sin are multiplied with magnitude."""

    def finish(self) -> None:
        """Everything was set. ValueError names what is missing or has another shape."""

    def forward(
        self,
        tables: list[KvTable],
        tokens: list[list[int]],
        rows: list[str | int],
        abort: AbortFlag | None = None,
    ) -> Floats:
        """The new tokens of some sequences, in one pass: the logits that are wanted, (rows, n_vocab) float32, those of
        the first sequence first. They are valid until the next pass.

        rows: for each sequence "none", "last", "all" or how many of its last tokens. Each sequence is there once, and
        is longer by its tokens afterwards. `abort` is looked at between layers. The interpreter lock is released, and
        passes of all models of the process take turns. ValueError for tokens that the model does not have, KvFull,
        MemoryError, PassInterrupted: then every sequence is as long as before.
        """

    @property
    def kernels(self) -> str:
        """The name of the kernels that it runs on."""

def attend(
    set: str,
    table: KvTable,
    layer: int,
    query: Floats,
    key: Floats,
    value: Floats,
    window: int,
    scale: float,
    soft_cap: float,
    out: Floats,
    reverse: bool = False,
) -> None:
    """Attention of one layer of the next tokens of a table, by the kernels `set`; for tests.

    query, out (tokens, heads, size); key, value (tokens, kv_heads, size). The table is longer after the last layer.
    window: keys that a query sees. soft_cap: 0 for none. reverse: do all parts of the work in reverse order.
    """

def cpu_features() -> list[str]:
    """Instruction sets that the processor has and the operating system lets a process use."""

def cpu_name() -> str:
    """The processor's own name, or an empty string."""

def amx_permitted() -> bool:
    """Whether this process already holds the kernel's permission for AMX tile data. Asking changes nothing."""

def bfloat16_kernels() -> str:
    """The kernels for prompts of ONNX graphs in bfloat16 that this process may use, or an empty string."""

def attends_in_onnx() -> bool:
    """Whether this processor has the kernels of the operator GroupQueryAttention."""

def trim_heap() -> None:
    """What was freed leaves the process where the C library (glibc) keeps it, between blocks that are in use."""

def physical_cores() -> int:
    """Physical cores this process may use on macOS and Windows; 0 elsewhere."""

def host_memory() -> tuple[int, int]:
    """Total and available bytes on macOS and Windows; zeros elsewhere."""

def call_refusing_amx(function: int, argument: int) -> int:
    """Call the C function `void *fn(void *)` at an address while the Linux kernel refuses AMX to this process.

    Elsewhere, and where the process holds the permission already, a plain call. The interpreter lock is released.
    Raises RuntimeError when no thread could be prepared.
    """

def crc32(data: Buffer, before: int = 0) -> int:
    """CRC-32 of ISO 3309, which zlib, gzip and PNG use: of bytes behind others, of which `before` is. The interpreter
    lock is released."""

def ids_where(function: int, object: int, count: int) -> list[int]:
    """The numbers below `count` for which the C function `bool fn(const void *object, int32_t id)` says true."""

def longest_stretch(text: bytes) -> tuple[int, int]:
    """The longest part of a UTF-8 text that one match of a pre-tokenizer's regular expression may span: its first
    character, and how many."""

def tokenize(function: int, vocabulary: int, text: bytes, parse_special: bool, stack: int) -> list[int]:
    """Call llama_tokenize, given by its address, with so many bytes of stack, in a thread of its own if need be.

    The interpreter lock is released. Raises MemoryError without memory for the stack or the tokens, ValueError for a
    text that is too long for its numbers, RuntimeError with the words of what else it throws.
    """

def kernel_sets() -> list[str]:
    """The kernels for GGUF's types that this processor has, by instruction set: the fastest first, "scalar" last.

    The functions below are these kernels by themselves, for tests. Arrays are float32, (n,), and results are written
    into the last one, of no other type or order (TypeError). They raise ValueError for a set that the processor does
    not have, and for sizes that differ.
    """

class KernelMatrix:
    """A matrix of weights as the kernels read it, from the bytes of a tensor in one of GGUF's types.

    Row i is row order[i] of the bytes. Laid out by so many threads. Raises ValueError for a shape or a type that cannot
    be, and for scales or numbers that are not finite.
    """

    def __init__(
        self,
        type: int,
        rows: int,
        columns: int,
        data: NDArray[np.uint8],
        order: NDArray[np.int64] | None = None,
        threads: int = 1,
    ) -> None: ...
    @property
    def bytes(self) -> int:
        """What it takes in memory."""

    @property
    def tiles(self) -> int:
        """Of 16 rows each."""

    def read_row(self, row: int, out: Floats) -> None:
        """The numbers of a row, (columns,)."""

def multiply(
    set: str,
    matrix: KernelMatrix,
    x: Floats,
    y: Floats,
    bias: Floats | None = None,
    scale: float | None = None,
    first: int = 0,
    last: int = ...,
) -> None:
    """The columns of y, (n, rows), of the tiles [first, last): x, (n, columns), times the transposed matrix, plus bias;
    with a scale, added to y times that. The interpreter lock is released."""

def rms_norm(set: str, x: Floats, weight: Floats | None, eps: float, y: Floats) -> None:
    """y = x / sqrt(mean(x^2) + eps) * weight; y may be x."""

def centered(set: str, x: Floats, y: Floats) -> None:
    """y = x - mean(x); y may be x."""

def gated(set: str, gate: str, x: Floats, up: Floats | None, y: Floats) -> None:
    """y = silu(x) * up, or "gelu_tanh" or "gelu" of x; y may be x."""

def rotate(set: str, head: Floats, cos: Floats, sin: Floats) -> None:
    """Turn the first 2 len(cos) numbers of a head: those of the first half of them are x, of the second y."""

def soft_cap(set: str, x: Floats, cap: float) -> None:
    """x = cap * tanh(x / cap)"""

def scaled(set: str, x: Floats, scale: float, add: bool, y: Floats) -> None:
    """y = scale * x, added to y or not."""

def prepare(set: str, form: str, x: Floats, step: int) -> bytes:
    """Rows as products read them, (rows, columns) prepared `step` rows at a time: Bytes32 or Bytes256 of
    native/kernels/activations.h for form "bytes32" or "bytes256", those of a row one behind the other."""

def choose(
    row: Floats,
    shifts: tuple[object, ...],
    mask: NDArray[np.uint32] | None,
    temperature: float,
    filters: tuple[tuple[str, float], ...],
    point: float,
) -> int:
    """The token of a row (n_vocab,): see SamplingPlan in edgellm/backends/base.py. -1: none is possible.

    The interpreter lock is released for large vocabularies. Raises ValueError for numbers that no plan has, IndexError
    for the shift of a token that the row does not have.
    """

def log_probabilities(row: Floats, token: int, n: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-softmax of a row (n_vocab,): that of `token`, and the n largest, by falling logit, then by id.

    Raises IndexError for a token that the row does not have.
    """
