"""Handovers of every kind, placed across due instants, and what became of every slot.

    python -m tests.handovers --scheduler django --handovers 200 --seed 7

Real nodes, each a process that stands for the election and runs the real scheduler over its real store; a real Postgres
and a real broker. Whoever makes the faults is not who counts: the count is made from the ledger and from the messages
that reached the broker.
"""
