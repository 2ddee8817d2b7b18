"""Several streams as one, as their pieces come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """Each piece with the index of its stream. The first error ends all."""
    if len(streams) == 1:  # by far the most
        async with aclosing(streams[0]) as stream:
            async for piece in stream:
                yield 0, piece
        return
    arrived: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue(maxsize=len(streams))

    async def pump(at: int, stream: AsyncGenerator[T]) -> None:
        try:
            async with aclosing(stream):
                async for piece in stream:
                    await arrived.put((at, piece))
        except Exception as error:
            await arrived.put(error)
        else:
            await arrived.put(None)

    pumps = [asyncio.ensure_future(pump(at, stream)) for at, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        for task in pumps:
            with suppress(asyncio.CancelledError):
                await task
