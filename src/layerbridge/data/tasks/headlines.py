"""Headlines: the smoke benchmark inside the package. It shows that the chain runs, not how well.

    id         category  text
    test-01    Sports    ...

860 train and 100 dev rows in English, 60 test rows in each of 17 languages, parallel by id; invented for this
project; the translations were not checked by native speakers. See `embedded/headlines/README.md`.
"""

from importlib import resources
from pathlib import Path

from layerbridge.data.tasks.source import FolderSource, Layout
from layerbridge.data.tasks.task import Task


def build() -> Task:
    """Return the task, read from the package."""
    folder = Path(str(resources.files("layerbridge").joinpath("embedded").joinpath("headlines")))
    return Task(
        name="headlines",
        version=1,
        title="Headlines (smoke benchmark): category of an invented headline in 17 languages",
        citation="layerbridge, written for this project",
        licence="CC BY 4.0",
        languages=(
            *("en", "si", "ta", "bn", "ml", "hi", "te", "ur", "sw"),
            *("ar", "zh", "es", "de", "ru", "tr", "vi", "th"),
        ),
        answers=("Business", "Entertainment", "Political", "Sports", "Science"),
        encoder_prompt="News Sentence: {text} Category: ",
        label_column="category",
        id_column="id",
        source=FolderSource(path=folder, label="package:headlines"),
        split_languages={"train": ("en",), "dev": ("en",)},
        layout=Layout(patterns=("{config}/{split}.tsv",)),
    )
