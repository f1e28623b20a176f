"""Decisions: what may happen. Pure functions and tables; nothing here waits."""
