"""Prefect flows and the `id2` command: what happens when."""
