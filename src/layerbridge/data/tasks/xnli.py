"""XNLI (arXiv 1809.05053): does the premise entail the hypothesis, contradict it, or neither? 15 languages.

    {"premise": "...", "hypothesis": "...", "label": 1}

392,702 train, 2,490 dev and 5,010 test rows a language. Hub layout as the set's page lists it:
`<lang>/{train,validation,test}-00000-of-00001.parquet`; label 0, 1, 2 = entailment, neutral, contradiction.
The TSVs of the XTREME release (`dev-<lang>.tsv`: premise, hypothesis, label word; no header) can be read from
a local folder, and other English rows in these columns trained on (`task.train_data`).
"""

from layerbridge.data.tasks.source import HubSource, Layout
from layerbridge.data.tasks.task import Task

HUB = "facebook/xnli"
PROMPT = "Premise: {premise} Hypothesis: {hypothesis} Label: "
ANSWERS = ("Entailment", "Neutral", "Contradiction")
LABELS = {
    **{str(number): answer for number, answer in enumerate(ANSWERS)},
    **{answer: answer for answer in ANSWERS},
    "contradictory": "Contradiction",
}


def build() -> Task:
    """Return the task, read from the hub."""
    return Task(
        name="xnli",
        version=1,
        title="XNLI: natural language inference in 15 languages",
        citation="Conneau et al. 2018, XNLI: Evaluating Cross-lingual Sentence Representations, arXiv 1809.05053",
        licence="CC BY-NC 4.0",
        languages=("en", "ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"),
        answers=ANSWERS,
        labels=LABELS,
        encoder_prompt=PROMPT,
        label_column="label",
        bare_columns=("premise", "hypothesis", "label"),
        hub=HUB,
        source=HubSource(repository=HUB, revision="b8dd5d7af51114dbda02c0e3f6133f332186418e"),
        layout=Layout(patterns=("{config}/{split}-*.parquet", "{config}/{split}/*.parquet")),
    )
