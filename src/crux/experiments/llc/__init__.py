"""Experiments with local learning coefficients, one file each."""
