"""The workbench on top of the plug-in: load, generate, compare, bench, report."""
