"""SIB-200 (arXiv 2309.07445): topic of a sentence, the same 1,004 sentences of FLORES-200 in 205 languages.

    index_id  category  text
    1523      science/technology  Mutation adds new genetic variation, ...

701 train, 99 dev and 204 test rows a language, with the same ids in each. Hub layout as the set's page lists
it: `data/<FLORES code>/{train,dev,test}.tsv`, no quoting. The authors' repository has `data/annotated/<FLORES
code>/...`.
"""

from layerbridge.data.tasks.source import HubSource, Layout
from layerbridge.data.tasks.task import Task
from layerbridge.languages import all_languages

HUB = "Davlan/sib200"
LABELS = {
    "science/technology": "Science",
    "travel": "Travel",
    "politics": "Politics",
    "sports": "Sports",
    "health": "Health",
    "entertainment": "Entertainment",
    "geography": "Geography",
}


def build() -> Task:
    """Return the task, read from the hub."""
    return Task(
        name="sib200",
        version=1,
        title="SIB-200: topic of a sentence in 205 languages",
        citation="Adelani et al. 2024, SIB-200, EACL, arXiv 2309.07445",
        licence="CC BY-SA 4.0",
        languages=tuple(item.code for item in all_languages()),
        answers=tuple(LABELS.values()),
        labels=LABELS,
        encoder_prompt="Sentence: {text} Topic: ",
        label_column="category",
        id_column="index_id",
        hub=HUB,
        source=HubSource(repository=HUB),
        layout=Layout(
            patterns=(
                "data/{config}/{split}.tsv",
                "data/annotated/{config}/{split}.tsv",
                "{config}/{split}/*.parquet",
            ),
            configs={item.code: item.flores for item in all_languages()},
            split_names={"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)},
        ),
    )
