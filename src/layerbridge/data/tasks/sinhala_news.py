"""Sinhala and English news sentences in five categories, as used in arXiv 2508.09091.

    {"sentence": "...", "label": "Sports"}

Splits on the hub: `train_en`, `test_en`, `test_si`; no dev. The columns are those that the paper's published
code reads. The set's files could not be looked at: their names are taken to be the hub's usual ones for an
uploaded set, `data/<split>-*.parquet`, or one file a split.
"""

from layerbridge.data.tasks.source import HubSource, Layout
from layerbridge.data.tasks.task import Task

HUB = "Themira/en_si_news_classification_with_label_name"


def build() -> Task:
    """Return the task, read from the hub."""
    return Task(
        name="sinhala_news",
        version=1,
        title="Sinhala news: category of a news sentence, English and Sinhala",
        citation="de Silva 2015, Sinhala Text Classification; Dhananjaya et al. 2022, BERTifying Sinhala; "
        "the English side and splits of arXiv 2508.09091",
        licence="see the hub page of the set",
        languages=("en", "si"),
        answers=("Business", "Entertainment", "Political", "Sports", "Science"),
        encoder_prompt="News Sentence: {sentence} Category: ",
        label_column="label",
        hub=HUB,
        source=HubSource(repository=HUB),
        splits=("train", "test"),
        split_languages={"train": ("en",)},
        layout=Layout(
            patterns=(
                "data/{split}-*.parquet",
                "default/{split}/*.parquet",
                "{split}/*.parquet",
                "data/{split}.{ext}",
                "{split}-*.{ext}",
                "{split}.{ext}",
            ),
            split_names={"train": ("train_{config}",), "test": ("test_{config}",)},
        ),
    )
