"""Makes the packaged language model from the packaged text: tokenizer, training, float16 weights, held-out bits per byte."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from crux.config.files import replacing_folder, write_tensors, write_text
from crux.config.schema import Config, to_plain
from crux.pretraining.bits_per_byte import bits_per_byte, total_nats
from crux.pretraining.module import LanguageModel, Rates, gpt2
from crux.runs.run_folder import RunFolder, new_path
from crux.sae import assemble
from crux.subjects.load import load_subject, load_tokenizer
from crux.text.batches import Batches
from crux.text.packaged import SOURCES, documents, held_out_ids
from crux.text.sources import Packaged
from crux.text.token_file import default_cache
from crux.text.tokenizer import END_OF_TEXT, train_bpe
from crux.text.tokens import prepare_tokens
from crux.training.data import Feed
from crux.training.fit import fit


def pretrain(config: Config, *, folder: Path | None) -> None:
    """Trains the language model; the run folder's `model/` is a Hugging Face folder for model.path=…"""
    settings = config.pretrain
    assert settings is not None, "experiment=pretrain sets it"
    torch.manual_seed(config.seed)
    held_out = held_out_ids()
    tokenizer = train_bpe(
        (d.text for source in SOURCES for d in documents(source) if d.id not in held_out),
        vocab_size=settings.vocab_size,
    )
    context = config.model.context
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    assert end_of_text is not None
    tokens = prepare_tokens(
        Packaged(SOURCES),
        tokenizer=tokenizer,
        eot=end_of_text,
        max_tokens=None,
        held_out_tokens=None,
        min_tokens=2 * context,
        cache=Path(config.cache) if config.cache is not None else default_cache(),
        progress=config.trainer.progress,
    )
    batches = Batches(  # one token more than is read: the last is only predicted
        tokens.train,
        context=context + 1,
        batch=config.trainer.batch,
        seed=config.seed,
        n_batches=config.trainer.max_steps,
    )
    model = gpt2(
        vocab_size=settings.vocab_size,
        context=context,
        d_model=settings.d_model,
        n_layers=settings.n_layers,
        n_heads=settings.n_heads,
    )
    optimizer = config.optimizer
    rates = Rates(
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        horizon=settings.horizon,
        max_steps=config.trainer.max_steps,
        cooldown_steps=settings.cooldown_steps,
    )
    module = LanguageModel(model, rates=rates, clip=optimizer.clip, log_every=config.trainer.log_every)
    run_folder = RunFolder.create(folder or new_path(Path(config.output_dir), "pretrain"), to_plain(config))
    rate = fit(
        module,
        Feed(batches, accumulate=1),
        pace=assemble.pace(config)._replace(val_every=0),
        checkpoints=run_folder.checkpoint.parent,
        resume=None,
        sinks=[run_folder.add_row],
        judge=None,
        shown={"train/ce": "CE"},
        abandoned=None,
    )
    export(model, tokenizer, run_folder.path / "model")
    metrics = held_out_bits(run_folder.path / "model", SOURCES, context=context, stride=settings.stride)
    metrics |= {
        "final/tokens_seen": float(config.trainer.max_steps * config.trainer.batch * context),
    }
    metrics |= {"final/tokens_per_second": rate} if rate is not None else {}
    run_folder.write_metrics(metrics)
    run_folder.finish()
    print("\n".join(f"{name}  {value:,.4f}" for name, value in metrics.items()))
    print(f"use it: model.path={run_folder.path / 'model'}")


def export(model: GPT2LMHeadModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a Hugging Face folder, weights in float16, the tied unembedding left out."""
    weights = {k: v.half() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    model.config.architectures = ["GPT2LMHeadModel"]
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}
    about = names | {"model_max_length": model.config.n_positions, "clean_up_tokenization_spaces": False}
    with replacing_folder(folder) as written:
        write_tensors(written / "model.safetensors", weights, metadata={"format": "pt"})
        write_text(written / "config.json", json.dumps(model.config.to_diff_dict(), indent=2, sort_keys=True) + "\n")
        tokenizer.save(str(written / "tokenizer.json"))
        write_text(written / "tokenizer_config.json", json.dumps(about, indent=2) + "\n")


def held_out_bits(folder: Path, sources: Sequence[str], *, context: int, stride: int) -> dict[str, float]:
    """Bits per byte on the held-out documents of packaged sources, for the model as it lies on disk, in float32."""
    subject = load_subject(folder, process_weights=False)
    tokenizer, end_of_text = load_tokenizer(folder)
    held_out, found = held_out_ids(), {}
    for source in sources:
        texts = [d.text for d in documents(source) if d.id in held_out]
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        nats = total_nats(subject, ids, end_of_text=end_of_text, context=context, stride=stride, batch=16)
        found[f"final/bits_per_byte/{source}"] = bits_per_byte(nats, sum(len(t.encode()) for t in texts))
    return found
