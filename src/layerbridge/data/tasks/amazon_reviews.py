"""Multilingual Amazon reviews (arXiv 2010.02573): stars of a product review, in MTEB's copy. 6 languages.

    {"id": "en_0964290", "text": "...", "label": 0, "label_text": "0"}

200,000 train, 5,000 dev and 5,000 test rows a language, balanced; sorted by stars, so never take the first
rows. Hub layout as the set's page lists it: `<lang>/{train,validation,test}.jsonl`; label 0 to 4 is one to
five stars.
"""

from layerbridge.data.tasks.source import HubSource, Layout
from layerbridge.data.tasks.task import Task

HUB = "mteb/amazon_reviews_multi"
ANSWERS = ("Very Negative", "Negative", "Neutral", "Positive", "Very Positive")


def build() -> Task:
    """Return the task, read from the hub."""
    return Task(
        name="amazon_reviews",
        version=1,
        title="Amazon reviews: stars of a product review in 6 languages",
        citation="Keung et al. 2020, The Multilingual Amazon Reviews Corpus, arXiv 2010.02573",
        licence="Amazon's licence for the corpus: non-commercial research",
        languages=("en", "de", "es", "fr", "ja", "zh"),
        answers=ANSWERS,
        labels={
            **{str(number): answer for number, answer in enumerate(ANSWERS)},
            **{answer: answer for answer in ANSWERS},
        },
        encoder_prompt="Review: {text} Label: ",
        label_column="label",
        id_column="id",
        hub=HUB,
        source=HubSource(repository=HUB, revision="c379a6705fec24a2493fa68e011692605f44e119"),
        layout=Layout(patterns=("{config}/{split}.jsonl", "{config}/{split}/*.parquet", "{config}/*-{split}.parquet")),
    )
