"""Durable notifications while everything fails: leaders, the broker and Postgres."""
