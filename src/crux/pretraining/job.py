"""The job that trains the packaged language model, exports it in float16 and evaluates the export by bits per byte of held-out text."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from crux.config.files import replacing_folder, write_tensors, write_text
from crux.config.progress import track
from crux.pretraining.bits_per_byte import sum_nats, to_bits_per_byte
from crux.pretraining.module import LanguageModel, build_gpt2
from crux.pretraining.options import PretrainJob
from crux.runs.life_cycle import ActiveRun, PreparedJob, RunOutcome, run_job
from crux.runs.run_folder import RunFolder
from crux.subjects.load import load_subject, load_tokenizer
from crux.text.batches import Batches
from crux.text.packaged import SOURCES, held_out_ids, packaged_documents
from crux.text.sources import PackagedText
from crux.text.token_file import default_cache
from crux.text.tokenizer import END_OF_TEXT, train_bpe
from crux.text.tokens import prepare_tokens
from crux.training.callbacks import make_callbacks
from crux.training.checkpoints import checkpoint_step
from crux.training.data import Feed
from crux.training.devices import choose_hardware
from crux.training.fit import fit


def run(config: PretrainJob, *, folder: Path | None) -> RunFolder:
    """Train the language model, and write it to the run folder's `model/` in Hugging Face layout, for model.path=….

    Args:
        folder: the run folder, if a sweep has assigned one; None: a new one.
    """
    return run_job(config, folder=folder, prepare=lambda: Pretraining(config).prepared_job())


class Pretraining:
    """The pretraining job: a new language model with its tokenizer and its batches."""

    def __init__(self, config: PretrainJob) -> None:
        torch.manual_seed(config.seed)
        self.config, context = config, config.model.context
        held_out = held_out_ids()
        self.tokenizer = train_bpe(
            (d.text for source in SOURCES for d in packaged_documents(source) if d.id not in held_out),
            vocab_size=config.pretrain.vocab_size,
        )
        end_of_text = self.tokenizer.token_to_id(END_OF_TEXT)
        assert end_of_text is not None
        tokens = prepare_tokens(
            PackagedText(SOURCES),
            tokenizer=self.tokenizer,
            eot=end_of_text,
            d_vocab=None,
            max_tokens=None,
            held_out_tokens=None,
            min_tokens=2 * context,
            cache=Path(config.cache) if config.cache is not None else default_cache(),
        )
        self.batches = Batches(  # one more token than the model reads: the last one is only predicted
            tokens.train,
            context=context + 1,
            batch=config.trainer.batch,
            seed=config.seed,
            n_batches=config.trainer.max_steps,
        )
        self.model = build_gpt2(config.pretrain, context=context)

    def prepared_job(self) -> PreparedJob:
        """Return the job, ready to be executed."""
        return PreparedJob(
            name="pretrain",
            execute=self.execute,
            last_row=lambda folder: checkpoint_step(folder.checkpoint),
            params={},
            run_configs={},
        )

    def execute(self, run: ActiveRun) -> Mapping[str, RunOutcome]:
        """Train the model, export it, and evaluate the exported model."""
        trainer, context = self.config.trainer, self.config.model.context
        rate = self.fit(run)
        place = run.folder.path / "model"
        export_model(self.model, self.tokenizer, place)
        stride = self.config.pretrain.stride
        metrics = evaluate_held_out(place, SOURCES, context=context, stride=stride)
        metrics |= {"final/tokens_seen": float(trainer.max_steps * trainer.batch * context)}
        metrics |= {"final/tokens_per_second": rate} if rate is not None else {}

        def show() -> None:
            print("\n".join(f"{name}  {value:,.4f}" for name, value in metrics.items()))
            print(f"use it: model.path={place}")

        return {"": RunOutcome(metrics, show)}

    def fit(self, run: ActiveRun) -> float | None:
        """Train the model; return the training tokens per second, or None if no step was left."""
        config, trainer = self.config, self.config.trainer
        start = checkpoint_step(run.folder.checkpoint)
        return fit(
            LanguageModel(self.model, options=config.pretrain, optimizer=config.optimizer, trainer=trainer),
            Feed(self.batches, accumulate=1),
            trainer=trainer,
            hardware=choose_hardware(trainer.accelerator, precision=trainer.precision, devices=1),
            items_per_step=trainer.batch * config.model.context,
            unit="tokens",
            checkpoints=run.folder.checkpoint.parent,
            resume=run.folder.checkpoint if start else None,
            sinks=[run.add_row],
            evaluations=None,
            bar_labels={"train/ce": "CE"},
            callbacks=make_callbacks(config.callbacks),
            on_abandon=None,
        )


def export_model(model: GPT2LMHeadModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder in Hugging Face layout, with weights in float16 and without the tied unembedding."""
    weights = {k: v.half() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    model.config.architectures = ["GPT2LMHeadModel"]
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}
    about = names | {"model_max_length": model.config.n_positions, "clean_up_tokenization_spaces": False}
    with replacing_folder(folder) as written:
        write_tensors(written / "model.safetensors", weights, metadata={"format": "pt"})
        write_text(written / "config.json", json.dumps(model.config.to_diff_dict(), indent=2, sort_keys=True) + "\n")
        tokenizer.save(str(written / "tokenizer.json"))
        write_text(written / "tokenizer_config.json", json.dumps(about, indent=2) + "\n")


def evaluate_held_out(folder: Path, sources: Sequence[str], *, context: int, stride: int) -> dict[str, float]:
    """Return the bits per byte of a model on disk on the held-out documents of packaged sources, computed in float32."""
    subject = load_subject(folder, process_weights=False)
    tokenizer, end_of_text = load_tokenizer(folder)
    held_out, metrics = held_out_ids(), {}
    for source in sources:
        texts = [d.text for d in packaged_documents(source) if d.id in held_out]
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        documents_read = track(ids, f"bits per byte of {source}")
        nats = sum_nats(subject, documents_read, end_of_text=end_of_text, context=context, stride=stride, batch=16)
        metrics[f"final/bits_per_byte/{source}"] = to_bits_per_byte(nats, sum(len(t.encode()) for t in texts))
    return metrics
