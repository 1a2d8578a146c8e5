"""The dashboard: a page and metrics, computed from the database."""
