"""Train and evaluate a sparse autoencoder: `python src/main.py loss=e2e_ds layer=6`. Every key is explained by `--help`."""

from crux.cli import main

if __name__ == "__main__":
    main()
