"""IndicXNLI (arXiv 2204.08776): XNLI machine-translated into 11 Indic languages.

    {"premise": "...", "hypothesis": "...", "label": 1}

392,702 train, 2,490 dev and 5,010 test rows a language. Hub layout as the set's own loading script names it:
`forward/{train,dev,test}/xnli_<lang>.json`, an object whose one value is the list of rows; the hub's parquet
branch (`task.revision: refs/convert/parquet`) has `<lang>/{train,validation,test}/0000.parquet`. Labels as in
XNLI. It has no English: training rows in English are XNLI's.
"""

from layerbridge.data.tasks import xnli
from layerbridge.data.tasks.source import HubSource, Layout
from layerbridge.data.tasks.task import Task

HUB = "Divyanshu/indicxnli"


def build() -> Task:
    """Return the task, read from the hub."""
    return Task(
        name="indicxnli",
        version=1,
        title="IndicXNLI: natural language inference in 11 Indic languages",
        citation="Aggarwal et al. 2022, IndicXNLI: Evaluating Multilingual Inference for Indian Languages, "
        "arXiv 2204.08776",
        licence="CC0 1.0 as tagged on the hub; XNLI's CC BY-NC 4.0 may bind the text",
        languages=("as", "bn", "gu", "hi", "kn", "ml", "mr", "or", "pa", "ta", "te"),
        answers=xnli.ANSWERS,
        labels=xnli.LABELS,
        encoder_prompt=xnli.PROMPT,
        label_column="label",
        hub=HUB,
        source=HubSource(repository=HUB, revision="7092c27872e919f31d0496fb8b9c47bd2cba3f6c"),
        layout=Layout(
            patterns=(
                "forward/{split}/xnli_{config}.json",
                "{config}/{split}/*.parquet",
                "{config}/*-{split}.parquet",
            )
        ),
        english_from=xnli.build(),
    )
