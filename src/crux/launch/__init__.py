"""A sweep's jobs in processes of their own: on this machine's GPUs or cores, on one's own nodes, on a SLURM cluster."""
