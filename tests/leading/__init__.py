"""Leader-only tasks while the lead changes in every way, and what became of each of them.

    python -m tests.leading --pool prefork --broker valkey --tasks 500 --changes 10 --seed 7

Real workers on a real Postgres and a real broker. Whoever makes the faults is not who counts: the count is made from
what the runs, the workers and the driver wrote down.
"""
