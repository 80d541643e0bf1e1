"""The experiments that need the folder of an earlier run."""

NEED_A_FOLDER = {
    "toy/sae": "model.path={0}", "read": "sae.path={0}", "export": "sae.path={0}", "read/compare": "saes=[{0},{1}]",
}  # fmt: skip
"""The argument that gives it, or two of them, by the name of the experiment."""
