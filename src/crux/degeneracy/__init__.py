"""Degeneracy of trained networks: local learning coefficients, calibrated on cases whose answer is known."""
