"""`python src/main.py loss=e2e_ds layer=6`: trains and evaluates a sparse autoencoder. What can be set: `--help`."""

from crux.cli import main

if __name__ == "__main__":
    main()
