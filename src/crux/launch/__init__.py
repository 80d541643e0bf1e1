"""Sweeps: their jobs run in this process, in processes on this machine's GPUs or cores, on a Ray cluster, or on a SLURM cluster."""
