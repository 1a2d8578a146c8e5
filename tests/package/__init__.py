"""What is published: a source distribution and a wheel, built, looked into, installed alone, and tried.

    python -m tests.package FOLDER

With the Python that runs it; FOLDER is emptied first. Needs nothing but `build` and `mypy`.
"""
