"""The jobs of the campaigns of kills and of damaged files: each takes about two seconds and has several checkpoints."""

SAE = (
    "model.context=32", "trainer.batch=2", "trainer.max_steps=16", "trainer.checkpoint_every=4", "trainer.log_every=1",
    "trainer.val_every=8", "evaluation.tokens=256", "evaluation.val_tokens=128", "evaluation.latents=2", "sae.ratio=1",
    "data.max_tokens=20000", "data.held_out_tokens=2000",
)  # fmt: skip
LLC = ("llc.chains=2", "llc.nbetas=[50,100]", "llc.burn_in=6", "llc.draws=8")

JOBS: dict[str, tuple[str, ...]] = {
    "e2e_ds": (*SAE, "loss=e2e_ds", "layer=6"),
    "local": (*SAE, "loss=local", "layer=4"),
    "jumprelu": (*SAE, "loss=e2e", "sae=jumprelu", "target_l0=20", "layer=6"),
    "topk": (*SAE, "loss=e2e", "sae=topk", "sae.k=8", "layer=6", "trainer.accumulate=2"),
    "many": (*SAE, "loss=local", "layer=4", "sparsities=[0.5,1,2]"),
    "gradient_topk": (*SAE, "loss=e2e", "sae=gradient_topk", "layer=6", "trainer.val_every=2"),
    "batch_topk": (*SAE, "loss=local", "layer=4", "sae=batch_topk", "sae.auxk.coefficient=0.03", "sae.auxk.dead_after=200"),
    "toy": (
        "experiment=toy/intro_polygon", "trainer.max_steps=30", "trainer.batch=32", "trainer.log_every=10",
        "trainer.checkpoint_every=10", "toy.held_out=1024", "toy.seeds=2",
    ),
    "llc": (
        "experiment=llc/sae_training", *LLC, "trainer.max_steps=20", "trainer.log_every=5", "trainer.checkpoint_every=5",
        "llc.checkpoints=3", "llc.samples=16",
    ),
    "pieces": ("experiment=degeneracy/synchronised", "degeneracy.hidden=[24]", "degeneracy.steps=60"),
    "pretrain": (
        "experiment=pretrain", "pretrain.vocab_size=300", "pretrain.d_model=8", "pretrain.n_layers=1", "pretrain.n_heads=2",
        "pretrain.horizon=12", "pretrain.cooldown_steps=4", "optimizer.warmup_steps=2", "pretrain.stride=128",
        "model.context=128", "trainer.max_steps=10", "trainer.batch=2", "trainer.log_every=1", "trainer.checkpoint_every=4",
        "trainer.precision=float32",
    ),
    "sweep": (*SAE, "-m", "loss=local,e2e", "sparsity=1,2", "layer=6", "sweep_name=killed"),
}  # fmt: skip
"""The command line of each job, without places."""


def shorten_sources() -> None:
    """Make the pretraining use one packaged text, and the chains write a checkpoint after every step."""
    import crux.llc.experiments.sampling as sampling
    import crux.pretraining.job as pretraining

    pretraining.SOURCES = ("moby-dick",)  # pyright: ignore[reportAttributeAccessIssue]
    sampling.CHECKPOINT_SECONDS = 0.0
