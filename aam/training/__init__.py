"""Losses, tasks, the loop and what hangs on it."""
