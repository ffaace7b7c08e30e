"""Predictions -> counts -> results.json. Pure: needs no model, so any scoring can be redone from the files.

An answer that cannot be read is None. It is counted wrong, and counted again in a column of its own.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from layerbridge.errors import DataError
from layerbridge.evaluation.predictions import (
    FOLDER,
    Prediction,
    PredictionsHeader,
    read_header,
    read_predictions,
)
from layerbridge.results import LanguageScore, Method, MethodScore, Provenance, Results, write_results

RESULTS_FILE = "results.json"


def pick_answer(log_probs: Mapping[str, float | None]) -> str | None:
    """Return the most probable answer, the first of equals; None if any log-probability is not finite."""
    values = {answer: value for answer, value in log_probs.items() if value is not None and math.isfinite(value)}
    return max(values, key=values.__getitem__) if values and len(values) == len(log_probs) else None


def read_answer(generated: str, answers: Sequence[str] | None) -> str | None:
    """Return the answer that a generated text is, stripped; None if it is none (free text: if empty)."""
    text = generated.strip()
    if answers is None:
        return text or None
    return text if text in answers else None


def score_language(
    header: PredictionsHeader, predictions: Sequence[Prediction], *, where: str = "predictions"
) -> LanguageScore:
    """Count one language.

    Args:
        header: Origin and answers of the predictions.
        predictions: The rows; their order does not matter.
        where: Opens the message of an error, before the row's line.

    Raises:
        DataError: a gold answer that is none of the task's, or a row that lacks what a method needs.
    """
    correct: Counter[Method] = Counter()
    unreadable: Counter[Method] = Counter()
    for line, row in enumerate(predictions, start=2):
        for method in header.provenance.methods:
            outcome = judge(row, method, header, where=f"{where}, line {line}")
            correct[method] += outcome is True
            unreadable[method] += outcome is None
    counts = Counter(row.answer for row in predictions)
    majority = min(counts, key=lambda answer: (-counts[answer], answer))
    return LanguageScore(
        n=len(predictions),
        methods={m: MethodScore(correct=correct[m], unreadable=unreadable[m]) for m in header.provenance.methods},
        majority_answer=majority,
        majority_correct=counts[majority],
        truncated=sum(row.truncated for row in predictions),
        data_source=header.data_source,
        data_sha256=header.data_sha256,
    )


def judge(row: Prediction, method: Method, header: PredictionsHeader, *, where: str) -> bool | None:
    """Return whether a row was answered right by a method; None: its answer cannot be read, which counts as wrong.

    Raises:
        DataError: a gold answer that is none of the task's, or a row that lacks what the method needs.
    """
    _check_gold(row, header, where)
    found = _answer(row, method, header, where)
    gold = row.answer.strip() if header.answers is None else row.answer
    return None if found is None else found == gold


def _check_gold(row: Prediction, header: PredictionsHeader, where: str) -> None:
    if not row.answer.strip():
        raise DataError(f"{where} (id {row.id!r}) has no gold answer.")
    if header.answers is not None and row.answer not in header.answers:
        raise DataError(
            f"{where} (id {row.id!r}): the gold answer {row.answer!r} is none of {', '.join(header.answers)}."
        )


def _answer(row: Prediction, method: Method, header: PredictionsHeader, where: str) -> str | None:
    if method == "generate":
        if row.generated is None:
            raise DataError(f"{where} (id {row.id!r}) has no generated text, and the header says it was generated.")
        return read_answer(row.generated, header.answers)
    if header.answers is None or row.log_probs is None or set(row.log_probs) != set(header.answers):
        wanted = ", ".join(header.answers or ()) or "none: the task is free text, which cannot be scored"
        found = ", ".join(row.log_probs or ()) or "none"
        raise DataError(f"{where} (id {row.id!r}): log-probabilities of {found}; wanted {wanted}.")
    answer = pick_answer({name: row.log_probs[name] for name in header.answers})
    if answer != row.scored:
        raise DataError(f"{where} (id {row.id!r}): scored is {row.scored!r}, and by the log-probabilities {answer!r}.")
    return answer


def gather_results(scored: Iterable[tuple[PredictionsHeader, LanguageScore]]) -> Results:
    """Put the languages of one evaluation together.

    Raises:
        DataError: nothing given, or languages of more than one evaluation.
    """
    pairs = sorted(scored, key=lambda pair: pair[0].language)
    if not pairs:
        raise DataError("There are no predictions to score. `layerbridge evaluate RUN` writes them.")
    first = pairs[0][0]
    for header, _ in pairs:
        _check_same_evaluation(first, header)
    return Results(
        provenance=first.provenance,
        created=max(header.created for header, _ in pairs),
        languages={header.language: score for header, score in pairs},
    )


def _check_same_evaluation(first: PredictionsHeader, other: PredictionsHeader) -> None:
    ours, theirs = first.provenance.model_dump(), other.provenance.model_dump()
    for name in ours:
        if ours[name] != theirs[name]:
            raise DataError(
                f"The predictions are of two evaluations: {name} is {ours[name]!r} of {first.language} and "
                f"{theirs[name]!r} of {other.language}. Evaluate again, or move one of them away."
            )


def rescore(folder: Path, *, provenance: Provenance | None = None) -> Results:
    """Score the predictions in an evaluation folder, without a model, and write its results.json.

    Args:
        folder: Has `predictions/LANG.jsonl`.
        provenance: Take only files of this evaluation; by default all files must be of one.

    Raises:
        DataError: no predictions, damaged ones, or files of more than one evaluation.
    """
    scored = []
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        if provenance is None or read_header(path).provenance == provenance:
            header, rows = read_predictions(path)
            scored.append((header, score_language(header, rows, where=str(path))))
    if not scored:
        raise DataError(f"No predictions in {folder / FOLDER}. `layerbridge evaluate RUN` writes them.")
    results = gather_results(scored)
    write_results(results, folder / RESULTS_FILE)
    return results
