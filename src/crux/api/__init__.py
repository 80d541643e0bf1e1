"""The functions of `crux` for Python: train, load and compare runs; load and evaluate SAEs."""
