"""The one command: corpora in, the embedded pair out.

    python -m pretraining.build --data DIR --work DIR --out DIR

Every stage writes into `--work` and is skipped when its output is there, made of the same
things (`made.py`); delete a stage's output (and those after it) to run it again. Budgets are in
steps, so that a corpus and a seed determine the result up to the arithmetic of the machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import MT5EncoderModel, PreTrainedTokenizerBase

from layerbridge.atomic import replace_file
from pretraining.bag import WEIGHTS_PLAN, BagPlan, train_bag, train_weights
from pretraining.card import write_encoder_card, write_llm_card
from pretraining.corpus import build_corpus
from pretraining.embeddings import build_embeddings
from pretraining.encoder import EncoderPlan, train_encoder
from pretraining.instructions import InstructionPlan, train_instructions
from pretraining.llm import LlmPlan, pack_documents, train_llm
from pretraining.pairs import tokenise_lines
from pretraining.probe import probe_encoder, summary, tokenise
from pretraining.tokenizer import build_encoder_tokenizer, build_llm_tokenizer, measure_tokenizer

ENCODER_VOCABULARY = 44_000
ENCODER_SENTENCES = 250_000
ENCODER_MAX_LENGTH = 512
LLM_VOCABULARY = 4096
LLM_MAX_LENGTH = 1024
MAX_BYTES = 40_000_000
"""What both finished folders may weigh together."""

log = logging.getLogger(__name__)


def build_encoder(
    data: Path,
    work: Path,
    out: Path,
    plan: EncoderPlan,
    bag_plan: BagPlan,
    *,
    weights_plan: BagPlan = WEIGHTS_PLAN,
    vocabulary: int = ENCODER_VOCABULARY,
    sentences: int = ENCODER_SENTENCES,
) -> None:
    """Corpus, tokenizer, SVD, training and yardstick of the encoder.

    Args:
        data: folder of the corpora.
        work: folder of stage outputs.
        out: gets `encoder/`.
        plan: of the training; its seed is that of every stage but the bags.
        bag_plan: of the bags.
        weights_plan: of the weights of pieces; its own seed does not count.
        vocabulary: pieces.
        sentences: lines that the tokenizer is trained on.
    """
    corpus = build_corpus(data, work)
    tokenizer_path = work / "encoder_tokenizer"
    tokenizer = build_encoder_tokenizer(
        corpus,
        tokenizer_path,
        vocabulary=vocabulary,
        sentences=sentences,
        max_length=ENCODER_MAX_LENGTH,
        seed=plan.seed,
    )
    measure_tokenizer(tokenizer, corpus[0], work / "encoder_tokenizer.json")
    lines = tokenise_lines(corpus, tokenizer, work / "lines.npz", seed=plan.seed)
    svd_VE = build_embeddings(
        lines, work / "embeddings.npy", vocabulary=len(tokenizer), width=plan.width, seed=plan.seed
    )
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    bag_VE = train_bag(lines, svd_VE, pieces, bag_plan, work / "bag.npy")
    weights_plan = replace(weights_plan, seed=plan.seed)
    weighted_VE = train_weights(lines, bag_VE, weights_plan, work / "weighted.npy")
    trained = work / "encoder"

    def measure(model: MT5EncoderModel) -> dict:
        return probe_encoder(model, tokenizer, data)

    model = train_encoder(lines, tokenizer, weighted_VE, plan, trained, measure=measure)
    tokenise(tokenizer, [""])  # saved with its last call's padding: the yardstick's, also where that ran before a stop
    publish(trained, tokenizer, out / "encoder")
    if not (report := trained / "probe.json").exists():
        log.info("encoder\n%s", summary(probe_encoder(model, tokenizer, data, report)))
    parameters = sum(p.numel() for p in model.parameters())
    write_encoder_card(
        trained, out / "encoder", bag_plan, weights_plan, parameters=parameters, vocabulary=len(tokenizer)
    )


def build_llm(
    data: Path,
    work: Path,
    out: Path,
    plan: LlmPlan,
    *,
    instruction_plan: InstructionPlan = InstructionPlan(),
    vocabulary: int = LLM_VOCABULARY,
) -> None:
    """Corpus, tokenizer and both trainings of the English LM.

    Args:
        data: folder of the corpora.
        work: folder of stage outputs.
        out: gets `llm/`.
        plan: of the first training; its seed is that of every stage.
        instruction_plan: of the second; its own seed does not count.
        vocabulary: tokens.
    """
    _, documents = build_corpus(data, work)
    tokenizer = build_llm_tokenizer(documents, work / "llm_tokenizer", vocabulary=vocabulary, max_length=LLM_MAX_LENGTH)
    streams = pack_documents(documents, tokenizer, work / "llm_tokens.npz", held_out=plan.held_out, seed=plan.seed)
    train_llm(*streams, tokenizer, plan, work / "llm")
    trained = work / "llm_instructed"
    model = train_instructions(work / "llm", tokenizer, replace(instruction_plan, seed=plan.seed), trained)
    publish(trained, tokenizer, out / "llm")
    parameters = sum(p.numel() for p in model.parameters())
    write_llm_card(trained, out / "llm", parameters=parameters, vocabulary=len(tokenizer))


def publish(trained: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Copies the weights and configuration, and saves the tokenizer beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        if (trained / name).exists():
            replace_file(folder / name, partial(shutil.copyfile, trained / name))
    tokenizer.save_pretrained(folder)
    figures = json.loads((trained / "training.json").read_text(encoding="utf-8"))["history"][-1]
    log.info("published %s: %s", folder.name, figures)


def check_size(out: Path) -> int:
    """Bytes of both folders; raises when they are more than the package carries."""
    folders = (out / "encoder", out / "llm")
    total = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    if total > MAX_BYTES:
        raise ValueError(f"the pair in {out} weighs {total:,} bytes, more than {MAX_BYTES:,}: shrink a vocabulary")
    return total


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--work", type=Path, required=True, help="folder of stage outputs")
    parser.add_argument("--out", type=Path, required=True, help="gets encoder/ and llm/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bag-steps", type=int, default=BagPlan.steps, help="of its first run")
    parser.add_argument("--encoder-steps", type=int, default=EncoderPlan.steps, help="0 skips the encoder")
    parser.add_argument("--llm-steps", type=int, default=LlmPlan.steps, help="0 skips the LM")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.encoder_steps:
        plan = replace(EncoderPlan(), steps=options.encoder_steps, seed=options.seed)
        bag_plan = replace(BagPlan(), steps=options.bag_steps, seed=options.seed)
        build_encoder(options.data, options.work, options.out, plan, bag_plan)
    if options.llm_steps:
        llm_plan = replace(LlmPlan(), steps=options.llm_steps, seed=options.seed)
        build_llm(options.data, options.work, options.out, llm_plan)
    log.info("pair: %s bytes", f"{check_size(options.out):,}")


if __name__ == "__main__":
    main()
