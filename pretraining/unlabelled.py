"""Writes the English texts of `recipes/lab/texts/`: what the lab's self-distillation reads before a task.

    python -m pretraining.unlabelled

The same sentences that the LM learned its instructions on (`instruction_rows.py`), without their answers, each in the
shape of a task's encoder prompt. A real LLM needs no such list: any English text of the task's kind will do.
"""

from __future__ import annotations

from pathlib import Path

from pretraining.instruction_rows import KINDS, instruction_rows

FOLDER = Path(__file__).parents[1] / "recipes" / "lab" / "texts"
FILES = {"sib200.txt": ("topic",), "sinhala_news_rksk.txt": ("headline", "news"), "xnli.txt": ("inference",)}
"""File, named after its task -> kinds of instructions whose texts it holds."""
MAX_TEXTS = 1500


def unlabelled_texts() -> dict[str, list[str]]:
    """File -> its lines; evenly spaced ones where there are more than `MAX_TEXTS`."""
    rows, _ = instruction_rows()
    found = {}
    for file, kinds in FILES.items():
        texts = [row.prompted()[0] for row in rows if row.kind in kinds]
        found[file] = texts[:: -(-len(texts) // MAX_TEXTS)]
    return found


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, lines in unlabelled_texts().items():
        (FOLDER / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{', '.join(FILES)} of {', '.join(KINDS)} in {FOLDER}")
