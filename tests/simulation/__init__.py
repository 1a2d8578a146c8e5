"""Histories of faults, played in simulated time with the package's own code. See `docs/simulation.md`."""
