"""Stand-in networks, SAEs, runs and sweeps that several test files share."""
