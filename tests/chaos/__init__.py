"""Chaos with real parts, and a history that is checked.

    python -m tests.chaos --scenario leading --pool threads --broker rabbitmq --seconds 60 --seed 7

Real workers, a real Postgres and a real broker, each started by this program on ports of its own, and everything done
to them that operations people fear. A scenario (`scenarios`) says what runs, what is sent and which faults there are.
All that happens is written down: by workers and tasks (`app`), by those who send (`clients`), by the one that makes the
faults (`faults`), and by the database, whose ledger is copied at the end (`driver`). `check` reads that history and
nothing else.
"""
