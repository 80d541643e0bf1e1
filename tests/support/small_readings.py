"""Command lines that read the latents of a small SAE in seconds."""

ONLY_RULES = (
    "experiment=read", "tracking=none", "trainer.progress=false", "model.context=64", "batch=8", "reading.fit_tokens=16384",
    "reading.held_out_tokens=8192", "reading.n_rules=3", "report_sizes=[1]", "reading.controls=0",
    "reading.influence_windows=0", "reading.ablations=0", "reading.effects=0", "reading.rewriting_tokens=0",
    "reading.residual_tokens=0", "reading.steered=0", "reading.probing=0", "reading.saebench_tokens=0",
)  # fmt: skip
"""A reading of few tokens that has the parts activation and geometry only; later words may switch others on."""


def read_report_table(report: str, heading: str) -> list[dict[str, str]]:
    """Return the rows of the table under a heading of a report that begins with these words."""
    text = report.partition(f"## {heading}")[2].partition("\n## ")[0]
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    )
    return [dict(zip(header, row, strict=True)) for row in rows]
