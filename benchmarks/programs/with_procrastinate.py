"""procrastinate: `work CONCURRENCY`, or `send NUMBER PACE` as send.py does it."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import procrastinate
from telling import tell

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["BENCH_DATABASE"]))
ORDER = {"id": 4711, "customer": "c-0815", "total": "129.90", "items": [{"sku": "tea-1", "count": 2}] * 3}


@app.task(name="on_order")
async def on_order(order: dict[str, Any]) -> None:
    """Tell that it runs."""
    tell("ran", number=order["number"])


async def work(concurrency: int) -> None:
    """Run jobs."""
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        tell("ready")
        await app.run_worker_async(concurrency=concurrency, delete_jobs="always")


async def send(number: int, pace: float) -> None:
    """Send them."""
    async with app.open_async():
        orders = [{"order": {**ORDER, "number": n}} for n in range(number)]
        if not pace:
            tell("sent", number=0)
            await on_order.batch_defer_async(*orders)
            return
        for n, order in enumerate(orders):
            tell("sent", number=n)
            await on_order.defer_async(**order)
            tell("committed", number=n)
            await asyncio.sleep(1 / pace)


if sys.argv[1] == "work":
    asyncio.run(work(int(sys.argv[2])))
else:
    asyncio.run(send(int(sys.argv[2]), float(sys.argv[3])))
