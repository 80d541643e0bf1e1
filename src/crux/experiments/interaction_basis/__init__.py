"""Experiments with the interaction basis."""
