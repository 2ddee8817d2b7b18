"""ChatModel: what a chat needs of a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from edgellm.backends.base import Buffer, ModelInfo
from edgellm.engine.cancel import CancelToken
from edgellm.engine.generation import Generation
from edgellm.engine.progress import OnProgress
from edgellm.events import Chunk, Completion
from edgellm.kv.blocks import Block
from edgellm.params import GenerateParams
from edgellm.prompter import Prompter, Turn


class ChatModel(Protocol):
    """As a `Model` has it."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def prompter(self) -> Prompter: ...

    def generate(
        self, prompt: Turn, params: GenerateParams, *, cancel: CancelToken | None, progress: OnProgress | None
    ) -> Completion: ...

    async def agenerate(
        self, prompt: Turn, params: GenerateParams, *, cancel: CancelToken | None, progress: OnProgress | None
    ) -> Completion: ...

    def astream(
        self, prompt: Turn, params: GenerateParams, *, cancel: CancelToken | None, progress: OnProgress | None
    ) -> AsyncGenerator[Chunk]: ...

    def submit(
        self,
        prompt: Turn,
        params: GenerateParams,
        *,
        stream: bool,
        cancel: CancelToken | None,
        progress: OnProgress | None,
    ) -> Generation: ...

    def export_state(self, tokens: list[int], *, private: bool) -> list[tuple[Block, Buffer]]: ...

    def adopt_state(self, blocks: list[tuple[Block, Buffer]], *, private: bool) -> bool: ...
