"""Figures against named peers or floors, measured in one run. `python -m benchmarks [NAME …]`."""
