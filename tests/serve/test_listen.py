"""The socket that is listened on."""

from __future__ import annotations

import asyncio
import socket

from edgellm.serve.listen import bound
from edgellm.serve.settings import ServeParams


def test_small_pieces_are_sent_at_once() -> None:
    async def without_delay() -> int:
        found = asyncio.get_running_loop().create_future()

        def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bound(ServeParams(port=0)) as listener:
            server = await asyncio.start_server(connected, sock=listener)
            _, writer = await asyncio.open_connection(*listener.getsockname())
            nodelay: int = await found
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()
        return nodelay

    assert asyncio.run(without_delay())
