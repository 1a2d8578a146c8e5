"""A small shop that shows celery-pgleader at work: `python -m example_app`."""
