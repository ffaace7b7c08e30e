"""The task: languages, splits, prompt and answers as data; one language's rows of a split as examples."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from layerbridge.config import TaskRows
from layerbridge.data.example import Example, Split
from layerbridge.data.files import Headerless, Row, Table, read_table
from layerbridge.data.selection import balance, divide, hold_out, limit, without_texts
from layerbridge.data.tasks.source import Found, Layout, MissingDataError, Source, UnreachableDataError
from layerbridge.errors import ConfigError, DataError, nearest, unknown_name
from layerbridge.languages import describe, language, nearest_codes
from layerbridge.prompt import prompt_fields, render_prompt

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What `Task.validate` found in one language and split."""

    language: str
    split: str
    state: str
    """`ok`, `missing` (no file) or `wrong`."""
    problem: str = ""
    rows: int = 0
    answers: Mapping[str, int] = field(default_factory=dict)
    """Answer -> rows; of free text only the number of different answers counts, under `different answers`."""
    in_train: int = 0
    """Rows whose text is also a training row's, in any language."""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark or a task of one's own. All of it is data; `load` and `load_training` read the rows."""

    name: str
    version: int
    """Raised whenever the same files would give other examples."""
    title: str
    citation: str
    licence: str
    languages: tuple[str, ...]
    """Those with a test split, as our codes."""
    answers: tuple[str, ...] | None
    """The possible answers; None: free text."""
    encoder_prompt: str
    label_column: str
    layout: Layout
    source: Source
    hub: str = ""
    """Name of the hub set; empty: there is none."""
    train_source: Source | None = None
    """Where the rows to train and to choose the best step by are, if not in `source`."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Split -> its share of the rows of a file that holds all splits (`Layout.undivided`); the first takes the rest."""
    splits: tuple[str, ...] = SPLITS
    split_languages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Languages of a split, where they are not `languages`."""
    labels: Mapping[str, str] | None = None
    """What a label is in the files -> answer. None: the answers themselves, in any case."""
    id_column: str | None = None
    """Used where a file has it; otherwise a row's id is its number."""
    bare_columns: tuple[str, ...] = ()
    """Columns of a TSV that comes without a header."""
    english_from: "Task | None" = None
    """Where the English train and dev rows come from, of a set without them."""

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The columns that the prompt names."""
        return prompt_fields(self.encoder_prompt)

    def languages_of(self, split: str) -> tuple[str, ...]:
        """Return the languages that a split is in, as our codes."""
        if split not in self.splits:
            raise ConfigError(unknown_name(f"split of task {self.name}", split, self.splits))
        own = tuple(self.split_languages.get(split, self.languages))
        english = self.english_from is not None and split != "test" and "en" not in own
        return ("en", *own) if english else own

    def render(self, fields: Mapping[str, Any] | str) -> str:
        """Return what the encoder reads; a bare text will do where the prompt has one field.

        Raises:
            DataError: a field is missing or empty.
        """
        return render_prompt(self.encoder_prompt, fields)

    def load(self, language: str, split: str) -> Split:
        """Read one language's rows of a split.

        Raises:
            ConfigError: the task has no such language or split.
            DataError: a file, a column or a row is missing or wrong; names it.
        """
        return self._load(self.code(language, split), split, training=split == "train")

    def _load(self, code: str, split: str, *, training: bool) -> Split:
        """Read a split; `training`: from `train_source`, if there is one."""
        if self._is_of_english_from(code, split):
            return cast(Task, self.english_from)._load("en", split, training=training)
        found = self._find(code, split, training=training)
        examples: Sequence[Example] = self._examples(found, code)
        if found.undivided:
            try:
                examples = divide(examples, self.shares)[split]
            except DataError as error:
                raise DataError(f"{', '.join(found.names)}: {error}") from None
        return Split.of(examples, source=found.source)

    def has(self, language: str, split: str) -> bool:
        """Return whether there are files of one language and split; reads none of them.

        Raises:
            ConfigError: the task has no such language or split.
            DataError: two files, so that it is not clear which is meant.
        """
        code = self.code(language, split)
        if self._is_of_english_from(code, split):
            return cast(Task, self.english_from).has("en", split)
        try:
            self._find(code, split, training=split == "train")
        except MissingDataError:
            return False
        return True

    def _is_of_english_from(self, code: str, split: str) -> bool:
        own = self.split_languages.get(split, self.languages)
        return self.english_from is not None and code == "en" and "en" not in own

    def _find(self, code: str, split: str, *, training: bool) -> Found:
        source = self.train_source if training and self.train_source else self.source
        return source.find(self.layout, language=code, split=split)

    def load_training(self, rows: TaskRows, *, seed: int) -> tuple[Split, Split]:
        """Read the train and dev rows of the training languages, and choose among them.

        With `rows.dev_rows` that many training rows are set aside, before any balancing or limiting; else dev
        is the task's own dev split, if it has one, else empty. A text that stands in dev is never trained on.
        Rows from `train_source` are another set's: texts that also stand in `source`, to be evaluated, are dropped.
        """
        if not rows.train_languages:
            raise ConfigError("train_languages is empty. Name at least one language, such as en.")
        seed = seed if rows.rows_seed is None else rows.rows_seed
        codes = dict.fromkeys(self.code(name, "train") for name in rows.train_languages)
        parts = [self.load(code, "train") for code in codes]
        train = tuple(example for part in parts for example in part.examples)
        if self.train_source is not None:
            train = without_texts(train, self._evaluated_texts(codes))
            if not train:
                raise DataError(
                    f"All training texts of task {self.name} in task.train_data also stand in its dev or test split, "
                    f"to be evaluated; none is left. Name other training rows."
                )
        source = " + ".join(dict.fromkeys(part.source for part in parts))
        if rows.dev_rows:
            train, dev_examples = hold_out(train, rows.dev_rows, seed=seed)
            dev = Split.of(dev_examples, source=f"{source} (held out of train)")
        else:
            dev = self._load_own_dev([code for code in codes if self._has_dev(code)])
            train = without_texts(train, {example.text for example in dev.examples})
            if not train:
                raise DataError(f"All training texts of task {self.name} also stand in its dev split; none is left.")
        if rows.balance_classes:
            if self.answers is None:
                raise ConfigError(
                    f"balance_classes needs classes, and task {self.name} has free text. Set it to false."
                )
            train = balance(train, self.answers, seed=seed)
        if rows.max_train_rows is not None:
            train = limit(train, rows.max_train_rows, seed=seed, answers=self.answers if rows.balance_classes else None)
        return Split.of(train, source=source), dev

    def validate(self, languages: Sequence[str] | None = None) -> list[SplitReport]:
        """Read every language and split there is, and say for each what it holds or what is wrong with it.

        Raises:
            UnreachableDataError: the folder or the hub set as a whole can't be reached.
        """
        reports = []
        train_texts: set[str] = set()
        for split in self.splits:
            codes = self.languages_of(split)
            asked = codes if languages is None else [code for code in codes if code in languages]
            for code in asked:
                report, texts = self._validate_one(code, split, train_texts)
                reports.append(report)
                if split == "train":
                    train_texts |= texts
        return reports

    def _validate_one(self, code: str, split: str, train_texts: set[str]) -> tuple[SplitReport, set[str]]:
        try:
            loaded = self.load(code, split)
        except UnreachableDataError:
            raise
        except DataError as error:
            state = "missing" if isinstance(error, MissingDataError) else "wrong"
            return SplitReport(language=code, split=split, state=state, problem=str(error)), set()
        counts = Counter(example.answer for example in loaded.examples)
        answers = {a: counts[a] for a in self.answers} if self.answers else {"different answers": len(counts)}
        return SplitReport(
            language=code,
            split=split,
            state="ok",
            rows=len(loaded),
            answers=answers,
            in_train=sum(example.text in train_texts for example in loaded.examples),
            source=loaded.source,
        ), {example.text for example in loaded.examples}

    def _has_dev(self, code: str) -> bool:
        return "dev" in self.splits and code in self.languages_of("dev")

    def _evaluated_texts(self, codes: Iterable[str]) -> set[str]:
        """Return the texts of the evaluated splits in these languages, as far as there are files."""
        texts: set[str] = set()
        for split in self.splits:
            for code in codes if split != "train" else ():
                if code in self.languages_of(split):
                    with suppress(MissingDataError):
                        texts |= {example.text for example in self.load(code, split).examples}
        return texts

    def _load_own_dev(self, codes: Sequence[str]) -> Split:
        try:
            parts = [self._load(code, "dev", training=True) for code in codes]
        except MissingDataError as error:
            raise MissingDataError(f"{error} Or set task.dev_rows, to set training rows aside instead.") from error
        source = " + ".join(dict.fromkeys(part.source for part in parts)) or "none"
        return Split.of((example for part in parts for example in part.examples), source=source)

    def code(self, name: str, split: str) -> str:
        """Return our code for a language that the split is in, whatever the user calls it.

        Raises:
            ConfigError: the split is not in such a language.
        """
        known = self.languages_of(split)
        if name in known:
            return name
        try:
            code = language(name).code
        except ConfigError:
            code = name
        if code in known:
            return code
        near = nearest_codes(name, known)
        hint = f" Did you mean {' or '.join(map(describe, near))}?" if near else ""
        listed = (
            ", ".join(known)
            if len(known) <= 30
            else f"{len(known)} languages, see `layerbridge tasks show {self.name}`"
        )
        raise ConfigError(f"Task {self.name} has no {split} rows of language {name!r}.{hint} Known: {listed}.")

    # --------------------------------------------------------------------------------------------------------
    # Rows -> examples

    def _examples(self, found: Found, code: str) -> list[Example]:
        examples: list[Example] = []
        seen: dict[str, str] = {}
        headerless = Headerless(columns=self.bare_columns, is_data=self._is_data) if self.bare_columns else None
        for path, name in zip(found.files, found.names, strict=True):
            table = read_table(path, name=name, headerless=headerless)
            self._check_columns(table)
            for row in table.rows:
                where = f"{name}, {row.place}"
                identity = self._identity(row, where, number=len(examples) + 1)
                if identity in seen:
                    raise DataError(
                        f"{where}: id {identity!r} stands at {seen[identity]} already. Make "
                        f"{self.id_column!r} unique, or drop the column: rows are then numbered."
                    )
                seen[identity] = where
                try:
                    text, answer = self.render(row.fields), self._answer(row.fields)
                except DataError as error:
                    raise DataError(f"{where}: {error}") from None
                examples.append(Example(id=identity, language=code, text=text, answer=answer))
        return examples

    def _check_columns(self, table: Table) -> None:
        wanted = dict.fromkeys((*self.fields, self.label_column))
        missing = [column for column in wanted if column not in table.columns]
        if not missing:
            return
        spare = [column for column in table.columns if column not in wanted]
        guesses = {column: nearest(column, spare) for column in missing}
        hints = "".join(f" Is {guess!r} meant to be {column!r}?" for column, guess in guesses.items() if guess)
        raise DataError(
            f"{table.name}: no column {', '.join(map(repr, missing))}. Found columns: "
            f"{', '.join(table.columns)}. Wanted: {', '.join(wanted)}.{hints} Rename the columns in the file."
        )

    def _identity(self, row: Row, where: str, *, number: int) -> str:
        if self.id_column is None or self.id_column not in row.fields:
            return str(number)
        value = row.fields[self.id_column]
        if value is None or not str(value).strip():
            raise DataError(f"{where}: the id in column {self.id_column!r} is empty. Fill it, or drop the column.")
        return str(value).strip()

    def _answer(self, fields: Mapping[str, Any]) -> str:
        if self.label_column not in fields:
            raise DataError(f"no {self.label_column!r}, wanted an answer.")
        label = label_text(fields[self.label_column])
        if not label:
            raise DataError(f"{self.label_column!r} is empty, wanted an answer. Fill it or drop the row.")
        if self.answers is None:
            return label
        exact, folded = self._label_tables
        answer = exact.get(label) or folded.get(label.casefold())
        if answer is None:
            guess = nearest(label, exact)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise DataError(
                f"label {label!r} in column {self.label_column!r} is none of task {self.name}.{hint} Known: "
                f"{', '.join(exact)}."
            )
        return answer

    @cached_property
    def _label_tables(self) -> tuple[dict[str, str], dict[str, str]]:
        """Label -> answer: as written, and in any case where that is not ambiguous."""
        exact = dict(self.labels) if self.labels is not None else {answer: answer for answer in self.answers or ()}
        counts = Counter(label.casefold() for label in exact)
        folded = {label.casefold(): answer for label, answer in exact.items() if counts[label.casefold()] == 1}
        return exact, folded

    def _is_data(self, fields: Mapping[str, str]) -> bool:
        exact, folded = self._label_tables
        label = label_text(fields.get(self.label_column))
        return label in exact or label.casefold() in folded


def label_text(value: Any) -> str:
    """Return a label as recipes spell it: `1` for 1, 1.0 and '1 ', `true` for True, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
