"""Measurements: every module prints a table and writes JSON rows."""
