"""Chaos with real parts, and a history that is checked.

    python -m tests.chaos --workers 4 --seconds 60 --seed 7 --broker valkey

Real workers, a real Postgres and a real broker, each started by this program on ports of its own, and everything done
to them that operations people fear. All that happens is written down: by workers and tasks (`app`), by those who send
(`clients`), by whoever makes the faults (`faults`), and by the database, whose ledger is copied at the end (`driver`).
`check` reads that history and nothing else.
"""
