"""A task of one's own: files, a prompt template, and answers or free text, all from the recipe."""

from pathlib import Path

from layerbridge.config import OwnTaskConfig
from layerbridge.data.tasks.source import FilesSource, Layout
from layerbridge.data.tasks.task import Task
from layerbridge.errors import ConfigError
from layerbridge.prompt import prompt_fields


def build(config: OwnTaskConfig) -> Task:
    """Build the task of a recipe. Reads no data yet.

    The train file is of the one training language; so is the dev file. Language codes are not checked against
    the table: a task may be in a language that it does not list.

    Raises:
        ConfigError: a prompt without fields, one that names the answer, empty or repeated answers, or several
            training languages.
    """
    if config.answer_column in prompt_fields(config.encoder_prompt):
        raise ConfigError(
            f"Task {config.name}: encoder_prompt names {{{config.answer_column}}}, which is the "
            f"answer_column: the model would read the answer. Drop it from the prompt."
        )
    if len(config.train_languages) != 1:
        raise ConfigError(
            f"Task {config.name}: train_languages has {len(config.train_languages)} languages "
            f"({', '.join(config.train_languages)}), but files.train is one file, of one language. Name that "
            f"one."
        )
    train_language = config.train_languages[0]
    files = {(train_language, "train"): Path(config.files.train)}
    if config.files.dev is not None:
        files[train_language, "dev"] = Path(config.files.dev)
    files.update({(code, "test"): Path(path) for code, path in config.files.test.items()})
    answers, labels = _answers(config)
    return Task(
        name=config.name,
        version=1,
        title=f"{config.name} (a task of one's own)",
        citation="",
        licence="",
        languages=tuple(config.files.test) or (train_language,),
        answers=answers,
        labels=labels,
        encoder_prompt=config.encoder_prompt,
        label_column=config.answer_column,
        id_column="id",
        source=FilesSource(files=files),
        splits=tuple(split for split in ("train", "dev", "test") if any(split == key[1] for key in files)),
        split_languages={"train": (train_language,), "dev": (train_language,)},
        layout=Layout(patterns=()),
    )


def _answers(config: OwnTaskConfig) -> tuple[tuple[str, ...] | None, dict[str, str] | None]:
    """Return the possible answers, and label -> answer."""
    if config.answers is None:
        return None, None
    pairs = config.answers if isinstance(config.answers, dict) else {answer: answer for answer in config.answers}
    labels = {label.strip(): answer.strip() for label, answer in pairs.items()}
    empty = [label for label, answer in labels.items() if not answer]
    if empty or not labels:
        where = f" (of label {', '.join(map(repr, empty))})" if isinstance(config.answers, dict) and empty else ""
        raise ConfigError(
            f"Task {config.name}: found an answer that is empty{where}, wanted words. Fill it, or leave "
            f"`answers` out for free text."
        )
    if len(labels) < len(config.answers):
        raise ConfigError(
            f"Task {config.name}: answers names {len(config.answers)} answers, some of them twice. Drop those."
        )
    return tuple(dict.fromkeys(labels.values())), labels
