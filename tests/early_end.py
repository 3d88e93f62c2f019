"""A proxy of a Ray dashboard that ends each stream of a job's log early, without an error.

Ray's head does so where its connection to the agent of the job's node breaks: it closes the client's stream
as it does at the end of a job.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from aiohttp import web


@contextmanager
def ends_early(dashboard: str, *, refused: int = 0) -> Iterator[tuple[str, list[str]]]:
    """The proxy's address on loopback, and the paths of the streams that it has ended so far.

    refused  the number of requests for a whole log that it answers as Ray's head does without that agent
    """
    ended: list[str] = []
    refusals = iter(range(refused))
    started, addresses = threading.Event(), list[str]()
    loop = asyncio.new_event_loop()

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/logs/tail"):
            stream = web.WebSocketResponse()
            await stream.prepare(request)
            ended.append(request.path)
            await stream.close()
            return stream
        if request.path.endswith("/logs") and next(refusals, None) is not None:
            return web.Response(status=500, text="no agent")
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method, dashboard + request.path_qs, headers=headers, data=await request.read()
            ) as answer,
        ):
            return web.Response(
                status=answer.status, body=await answer.read(), content_type=answer.content_type
            )

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        addresses.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        started.set()
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(20)
    try:
        yield addresses[0], ended
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
