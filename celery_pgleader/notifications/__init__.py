"""From a Postgres notification to whoever handles it.

`listener` hears notifications while this node leads, `payload` encodes and decodes them, `notifier` sends them;
none of the three knows Celery. `registry` remembers which task wants which channel, and `dispatcher` turns a
notification into calls of those tasks.

A raw notification is delivered at most once: what is sent while nobody leads, or while the leader reconnects, reaches
nobody.
"""
