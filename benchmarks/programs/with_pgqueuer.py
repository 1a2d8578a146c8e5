"""pgqueuer: `work BATCH`, or `send NUMBER PACE` as send.py does it."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from telling import tell

ORDER = {"id": 4711, "customer": "c-0815", "total": "129.90", "items": [{"sku": "tea-1", "count": 2}] * 3}


async def work(batch: int) -> None:
    """Run jobs."""
    driver = AsyncpgDriver(await asyncpg.connect(os.environ["BENCH_DATABASE"]))
    await Queries(driver).install()
    queuer = PgQueuer(driver)

    @queuer.entrypoint("on_order")
    async def on_order(job: Job) -> None:
        tell("ran", number=json.loads(job.payload or b"{}")["number"])

    tell("ready")
    await queuer.run(batch_size=batch)


async def send(number: int, pace: float) -> None:
    """Send them."""
    queries = Queries(AsyncpgDriver(await asyncpg.connect(os.environ["BENCH_DATABASE"])))
    payloads: list[bytes | None] = [json.dumps({**ORDER, "number": n}).encode() for n in range(number)]
    if not pace:
        tell("sent", number=0)
        await queries.enqueue(["on_order"] * number, payloads, [0] * number)
        return
    for n, payload in enumerate(payloads):
        tell("sent", number=n)
        await queries.enqueue("on_order", payload)
        tell("committed", number=n)
        await asyncio.sleep(1 / pace)


if sys.argv[1] == "work":
    asyncio.run(work(int(sys.argv[2])))
else:
    asyncio.run(send(int(sys.argv[2]), float(sys.argv[3])))
