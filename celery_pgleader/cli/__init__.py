"""The command line: `--pgleader` for the worker, and `celery -A proj pgleader ...`."""
