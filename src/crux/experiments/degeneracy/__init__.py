"""Experiments that measure degeneracy."""
