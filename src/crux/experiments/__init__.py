"""Experiments other than training SAEs, one file each: what is trained, what is found of it, what should come out."""
