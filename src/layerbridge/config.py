"""Recipes: what a run is made of, checked once, when built. No torch here.

A recipe is YAML in the shape of `Recipe`; `load_recipe` reads it, applies `key.path=value` overrides and turns every
complaint into a `ConfigError` that names the nearest known key. All configs are frozen: a run cannot drift from its
recipe.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from layerbridge.errors import ConfigError, nearest

EMBEDDED = "embedded"
"""As an encoder's or an LLM's name: the small pair inside the package."""


class FrozenConfig(BaseModel):
    """Keyword-only, immutable, and refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# ---------------------------------------------------------------------------------------------------------------------
# The bridge


class LoraConfig(FrozenConfig):
    """Low-rank adapters (arXiv 2106.09685) in an otherwise frozen base, through the `peft` extra."""

    rank: int = Field(default=8, ge=1)
    """Width of the adapters."""
    alpha: int = Field(default=16, ge=1)
    """What an adapter puts out is scaled by `alpha` / `rank`."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Module name endings that get an adapter, or `all-linear`."""


class EncoderConfig(FrozenConfig):
    """The frozen multilingual encoder."""

    name: str = EMBEDDED
    """A Hugging Face name, a local folder, or `embedded`."""
    revision: str | None = None
    """Commit, branch or tag on the hub; of a local folder it means nothing."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the frozen weights; the T5 family (mT5, umT5) overflows `float16`, which is refused for it."""
    layers: Literal["all"] | str | tuple[int, ...] = "all"
    """Which hidden states the fusion sees: `all` (1..L, the paper's choice), `last:K`, or numbers (0 is the embedding
    output, negatives count from the last)."""
    train_biases: bool = False
    """Also train the encoder's existing bias vectors."""
    lora: LoraConfig | None = None
    """Adapters that train in the encoder, whose states can then not be kept (`--cache`)."""
    source_language: str | None = None
    """Language tag that the encoder's tokenizer puts on every text, as it spells it (`eng_Latn`). Must be said for
    tokenizers that tag (NLLB, M2M100, mBART), which would otherwise take every text for English in silence."""
    trust_remote_code: bool = False
    """Let the model's files run code of their own."""

    @model_validator(mode="after")
    def _check_layers(self) -> "EncoderConfig":
        if isinstance(self.layers, str) and self.layers != "all" and not re.fullmatch(r"last:[1-9]\d*", self.layers):
            raise ValueError(f"layers is {self.layers!r}; wanted 'all', 'last:K' with K >= 1, or a list of numbers")
        if isinstance(self.layers, tuple) and not self.layers:
            raise ValueError("layers is an empty list; wanted at least one layer number, or 'all'")
        return self


class LLMConfig(FrozenConfig):
    """The frozen English-centric causal LLM."""

    name: str = EMBEDDED
    """A Hugging Face name, a local folder, or `embedded`."""
    revision: str | None = None
    """Commit, branch or tag on the hub; of a local folder it means nothing."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the frozen weights; what trains is float32 whatever this says."""
    lora: LoraConfig | None = None
    """Adapters that train in the LLM."""
    quantization: dict[str, Any] | None = None
    """Keyword arguments of a transformers quantisation config, with its `quant_method`; passed through."""
    trust_remote_code: bool = False
    """Let the model's files run code of their own."""


class TranslatorConfig(FrozenConfig):
    """A frozen translation model, of the baseline that translates into English and asks the LLM."""

    name: str
    """Of any sequence-to-sequence model of transformers: a Hugging Face name or a local folder."""
    revision: str | None = None
    """Commit, branch or tag on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of its weights."""
    source_languages: dict[str, str] | None = None
    """Our code -> tag as the tokenizer spells it (`si: sin_Sinh`); languages left out are looked up among its tags."""
    target_language: str | None = None
    """The tag of English; by default looked up likewise."""
    prefix: str = ""
    """Stands before every text, as T5-like models (`<2en> `) and many-to-many Marian models (`>>eng<< `) want it."""
    max_source_tokens: int = Field(default=512, ge=1)
    """The translation model's tokens of a field; the rest is cut, and counted."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Of a translated field."""
    num_beams: int = Field(default=1, ge=1)
    """1 is greedy."""
    batch_size: int = Field(default=16, ge=1)
    """Fields a pass."""
    trust_remote_code: bool = False
    """Let the model's files run code of their own."""


Weights = Literal["softmax", "entmax15", "sparsemax"]
"""How a fusion's logits become weights; entmax15 (arXiv 1905.05702) and sparsemax (arXiv 1602.02068) give most layers
none."""


class LastLayer(FrozenConfig):
    """The encoder's last layer alone: LangBridge (arXiv 2401.10695)."""

    name: Literal["last_layer"] = "last_layer"


class SingleLayer(FrozenConfig):
    """One chosen encoder layer alone."""

    name: Literal["single_layer"] = "single_layer"
    layer: int
    """The encoder's own layer number, as in `encoder.layers`."""
    normalize_layers: bool = False
    """Divide each token's state of each layer by its root mean square before it is scored and mixed."""


class LayerMean(FrozenConfig):
    """The plain mean of the layers; nothing to learn."""

    name: Literal["layer_mean"] = "layer_mean"
    normalize_layers: bool = False


class GlobalSoftmax(FrozenConfig):
    """One learned weight a layer under a softmax with a fixed temperature."""

    name: Literal["global_softmax"] = "global_softmax"
    temperature: float = Field(default=1.0, gt=0)
    """The layers' logits are divided by it: under 1 the weights are sharper, above 1 flatter."""
    weights: Weights = "softmax"
    """How logits become weights."""
    heads: int = Field(default=1, ge=1)
    """Mixes a token, side by side into the projector."""
    normalize_layers: bool = False


class GlobalSoftmaxPublished(FrozenConfig):
    """Global Softmax with the trained, very fast moving temperature of arXiv 2508.09091's code."""

    name: Literal["global_softmax_published"] = "global_softmax_published"
    normalize_layers: bool = False


class TransformerSoftmax(FrozenConfig):
    """Layer weights per token from a one-layer transformer over that token's layers (arXiv 2508.09091)."""

    name: Literal["transformer_softmax"] = "transformer_softmax"
    feedforward_width: int = Field(default=2048, ge=1)
    """Hidden units of the transformer layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Inside the transformer layer, in training alone."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the layer weights; the attention inside is as published."""
    weights: Weights = "softmax"
    """Likewise."""
    normalize_layers: bool = False


class AttentionPool(FrozenConfig):
    """Layer weights per token from one learned query over that token's layers."""

    name: Literal["attention_pool"] = "attention_pool"
    temperature: float = Field(default=1.0, gt=0)
    weights: Weights = "softmax"
    heads: int = Field(default=1, ge=1)
    """Queries, and mixes a token, side by side into the projector."""
    normalize_layers: bool = False


class LowRankSoftmax(FrozenConfig):
    """Layer weights per token from two narrow matrices over what one learned query reads of that token's layers."""

    name: Literal["low_rank_softmax"] = "low_rank_softmax"
    rank: int = Field(default=16, ge=1)
    """Width between the two matrices."""
    temperature: float = Field(default=1.0, gt=0)
    weights: Weights = "softmax"
    heads: int = Field(default=1, ge=1)
    """Mixes a token, side by side into the projector; they share the query and the first matrix."""
    normalize_layers: bool = False


RECOMMENDED: dict[str, Any] = {"name": "global_softmax", "heads": 2}
"""What `fusion: recommended` stands for; options beside the name win over these."""


def _fusion_tag(value: Any) -> Any:
    return value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)


FusionConfig = Annotated[
    Annotated[LastLayer, Tag("last_layer")]
    | Annotated[SingleLayer, Tag("single_layer")]
    | Annotated[LayerMean, Tag("layer_mean")]
    | Annotated[GlobalSoftmax, Tag("global_softmax")]
    | Annotated[GlobalSoftmaxPublished, Tag("global_softmax_published")]
    | Annotated[TransformerSoftmax, Tag("transformer_softmax")]
    | Annotated[AttentionPool, Tag("attention_pool")]
    | Annotated[LowRankSoftmax, Tag("low_rank_softmax")],
    Discriminator(_fusion_tag),
]


class PoolingConfig(FrozenConfig):
    """How many soft tokens a text has; between fusion and projector."""

    name: Literal["none", "mean", "every", "append_mean"] = "none"
    """`none`: one a source token, as in the paper. `mean`: their mean alone. `every`: the mean of each `size` in a row.
    `append_mean`: all of them, and then their mean."""
    size: int | None = Field(default=None, ge=1)
    """Of `every`, and it must be said: source tokens a soft token; the last one of a text may have fewer."""

    @model_validator(mode="after")
    def _check_size(self) -> "PoolingConfig":
        if self.size is not None and self.name != "every":
            raise ValueError(f"size is of pooling 'every', and this one is {self.name!r}; drop it")
        if self.size is None and self.name == "every":
            raise ValueError("pooling 'every' has no size; say how many source tokens make a soft token, such as 4")
        return self


class ProjectorConfig(FrozenConfig):
    """Width of a fused state (the encoder's, times the fusion's heads) -> LLM width."""

    name: Literal["linear", "mlp"] = "linear"
    """`linear`: one matrix with a bias, as in the paper. `mlp`: two, with a GELU between."""
    hidden_width: int | None = Field(default=None, ge=1)
    """Of `mlp` only; by default the LLM's width."""
    match_rms: bool = False
    """Scale each soft token to the root mean square of the LLM's own input embeddings."""

    @model_validator(mode="after")
    def _check_hidden(self) -> "ProjectorConfig":
        if self.hidden_width is not None and self.name != "mlp":
            raise ValueError(f"hidden_width is of projector 'mlp', and this one is {self.name!r}; drop it")
        return self


class PromptConfig(FrozenConfig):
    """What the LLM reads as text after the soft tokens. Empty: soft tokens only, as in the paper."""

    text: str = ""
    """Such as `\\nTopic:`; white space counts."""
    style: Literal["plain", "chat"] = "plain"
    """`plain`: as it stands. `chat`: as one user turn through the LLM's own chat template."""
    llm_reads_text: bool = False
    """The LLM also reads the source text itself, before `text` (as in MindMerger, NeurIPS 2024)."""
    max_text_tokens: int = Field(default=512, ge=1)
    """Of `llm_reads_text`: LLM tokens of the source text; the rest is cut."""

    @property
    def is_empty(self) -> bool:
        """Whether the LLM reads no text at all."""
        return not self.text and not self.llm_reads_text and self.style == "plain"


class BridgeConfig(FrozenConfig):
    """Everything that defines a bridge: two frozen models and what is trained between them."""

    encoder: EncoderConfig = EncoderConfig()
    llm: LLMConfig = LLMConfig()
    fusion: FusionConfig = TransformerSoftmax()
    pooling: PoolingConfig = PoolingConfig()
    projector: ProjectorConfig = ProjectorConfig()
    prompt: PromptConfig = PromptConfig()
    boundary: Literal["zeros", "random"] = "zeros"
    """How the boundary vector starts. `zeros`: as published (arXiv 2508.09091). `random`: as in LangBridge (arXiv
    2401.10695), here normal with the root mean square of the LLM's input embeddings."""

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, data: Any) -> Any:
        """Let a bare name stand for a config: `fusion: last_layer` is `fusion: {name: last_layer}`.

        `fusion: recommended` becomes what it stands for, so that what is saved says it in full.
        """
        if not isinstance(data, Mapping):
            return data
        named = {k: {"name": v} if k in _NAMED_PARTS and isinstance(v, str) else v for k, v in data.items()}
        fusion = named.get("fusion")
        if isinstance(fusion, Mapping) and fusion.get("name") == "recommended":
            named["fusion"] = {**RECOMMENDED, **{k: v for k, v in fusion.items() if k != "name"}}
        return named


_NAMED_PARTS = ("encoder", "llm", "fusion", "pooling", "projector", "task")

# ---------------------------------------------------------------------------------------------------------------------
# Task, training, evaluation


class TaskRows(FrozenConfig):
    """Which training rows of a task are used."""

    train_languages: tuple[str, ...] = ("en",)
    """Training is on English unless the recipe names other languages here."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Keep at most this many training rows, drawn with the training seed."""
    balance_classes: bool = False
    """Keep as many rows of every answer as the rarest has."""
    dev_rows: int = Field(default=0, ge=0)
    """Set this many training rows aside as dev rows; 0 uses the task's own dev split, if it has one."""
    rows_seed: int | None = None
    """Of the choice of rows; by default the training seed. Runs that share it share their rows, and what an encoder
    puts out for them."""


class BuiltinTaskConfig(TaskRows):
    """A task that comes with layerbridge (`layerbridge tasks ls`)."""

    name: str
    """As `layerbridge tasks ls` spells it."""
    data: str | None = None
    """Local folder or file in the hub set's own schema; by default the hub set itself."""
    train_data: str | None = None
    """Local folder or file with the rows to train on (train, and dev of the training languages) in the task's own
    columns, where they are not in `data`. A file that names no language is of the one training language."""
    revision: str | None = None
    """Of the hub set."""


class TaskFiles(FrozenConfig):
    """The files of a task of one's own: jsonl, json, csv, tsv or parquet."""

    train: str
    """Rows of the one training language."""
    dev: str | None = None
    """Rows of the training languages, to choose the best step by."""
    test: dict[str, str] = Field(default_factory=dict)
    """Language code -> file."""


class OwnTaskConfig(TaskRows):
    """A task of one's own: files, a prompt template, and answers or free text."""

    name: str
    """Of your choice; results are kept under it."""
    files: TaskFiles
    encoder_prompt: str
    """Template over the files' columns, such as `Ticket: {body} Queue: `."""
    answer_column: str
    """Column of the files that holds the answer."""
    answers: tuple[str, ...] | dict[str, str] | None = None
    """The possible answers; or value in the file -> answer; or nothing for free text."""


def _task_tag(value: Any) -> str:
    has_files = "files" in value if isinstance(value, Mapping) else hasattr(value, "files")
    return "own" if has_files else "builtin"


TaskConfig = Annotated[
    Annotated[BuiltinTaskConfig, Tag("builtin")] | Annotated[OwnTaskConfig, Tag("own")],
    Discriminator(_task_tag),
]


class SelfDistillationConfig(FrozenConfig):
    """English self-distillation (MT-LLM, arXiv 2406.12739): to be read through the bridge as the text itself is read.

    Costs a pass of the LLM over the rows before step one.
    """

    weight: float = Field(default=1.0, ge=0)
    """Of this loss beside the answers' own; 0: only in the stage before."""
    temperature: float = Field(default=1.0, gt=0)
    """That both distributions are softened by."""
    epochs_before: float = Field(default=0.0, ge=0)
    """Of a stage before the task, with this loss alone, where the answer would begin: no answer is read in it."""
    texts: str | None = None
    """A file of English texts, one a line, for that stage; by default the training rows' texts."""

    @model_validator(mode="after")
    def _check_use(self) -> "SelfDistillationConfig":
        if not self.weight and not self.epochs_before:
            raise ValueError("weight and epochs_before are both 0, so it does nothing; set one, or drop it")
        if self.texts is not None and not self.epochs_before:
            raise ValueError(
                "texts are read in the stage before the task, and epochs_before is 0; set it, or drop texts"
            )
        return self


class NoiseAgreementConfig(FrozenConfig):
    """Draws the layer mix toward layers in which an English text and the same text with misspellings agree."""

    weight: float = Field(default=1.0, gt=0)
    """Of this loss beside the answers' own."""
    temperature: float = Field(default=0.05, gt=0)
    """Of the softmax that makes wanted layer weights of the layers' agreement."""
    noise: float = Field(default=0.1, gt=0, le=1)
    """Share of letters that are dropped, doubled, swapped with the next or replaced."""
    max_texts: int = Field(default=512, ge=2)
    """Training texts that agreement is measured on, drawn with the training seed."""


class TrainingConfig(FrozenConfig):
    """Defaults are the published set-up (arXiv 2508.09091)."""

    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training rows."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer updates, not micro-batches; overrides `epochs`."""
    batch_size: int = Field(default=8, ge=1)
    """Rows per optimizer update, over all processes and micro-batches."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows per forward pass and process; by default `batch_size` divided by the number of processes."""
    learning_rate: float = Field(default=3e-5, gt=0)
    """The highest, after the warm-up."""
    fusion_learning_rate: float | None = Field(default=None, gt=0)
    """Of the fusion's parameters alone; by default `learning_rate`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    """Of all steps."""
    adam_betas: tuple[float, float] = (0.8, 0.999)
    """Of AdamW: how fast its means of gradients and of their squares forget."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Of AdamW."""
    weight_decay: float = Field(default=3e-7, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are cut to this norm."""
    group_by_length: bool = False
    """Draw batches of texts of like length, so that little of them is padding; the paper does not."""
    max_source_tokens: int = Field(default=200, ge=1)
    """Encoder tokens a text; longer texts are cut, and counted."""
    max_answer_tokens: int = Field(default=200, ge=2)
    """LLM tokens an answer, its end token included."""
    eval_every: int | None = Field(default=None, ge=1)
    """Optimizer updates between two looks at the dev rows, each with a checkpoint; by default 8 looks a run."""
    select: Literal["best", "last"] = "best"
    """`best`: the step that did best on the dev rows (training languages only); `last`: the last step."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Training checkpoints that stay, always the newest and the best among them."""
    feature_precision: Literal["encoder", "bfloat16", "int8"] = "encoder"
    """How encoder states are kept, where they are kept (`--cache`): as the encoder puts them out, or smaller with a
    stated error."""
    gradient_checkpointing: bool = False
    """Keep less of the forward pass and compute it again in the backward pass: less memory, more time. Of the LLM its
    layers' inputs are kept, and of the encoder, by fusions that make one mix with the same weights for all tokens,
    nothing. Other fusions, `global_softmax` with `heads` above 1 too, hold all of its layers as without it."""
    torch_compile: bool = False
    """Let torch compile the LLM; worth its minutes of start-up on long runs on a GPU."""
    shard_llm: bool = False
    """Spread the frozen LLM over the processes that torchrun started, for LLMs that one GPU cannot hold."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that prepare batches beside the one that trains."""
    self_distillation: SelfDistillationConfig | None = None
    """Also learn to be read as the text itself is read; not published, off by default."""
    noise_agreement: NoiseAgreementConfig | None = None
    """Also learn to mix layers that misspellings change little; not published, off by default."""
    state_noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the Gaussian noise that is added to what the projector reads, in training alone, as a
    multiple of each state's own root mean square; not published, off by default."""
    seed: int = 0
    """Of rows, order and initial weights."""


class EvaluationConfig(FrozenConfig):
    """How answers are read."""

    languages: tuple[str, ...] | None = None
    """By default all that the task has."""
    split: str = "test"
    """One of the task's, such as `dev`."""
    methods: tuple[Literal["score", "generate"], ...] = ("score", "generate")
    """`score`: the most probable answer. `generate`: greedy text, stripped, matched exactly (the paper)."""
    max_source_tokens: int = Field(default=512, ge=1)
    """Encoder tokens a text; longer texts are cut, and counted."""
    max_new_tokens: int = Field(default=32, ge=1)
    """LLM tokens of a greedy text."""
    batch_size: int = Field(default=256, ge=1)
    """Texts a pass at most; `batch_tokens` is what usually ends a batch."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Encoder tokens a pass, padding included; halved by itself when memory runs out."""
    limit: int | None = Field(default=None, ge=1)
    """Rows per language; a limited result says so and compares with no other."""


class Recipe(BridgeConfig):
    """One run: a bridge, a task, and how it is trained and evaluated."""

    name: str
    """Of the run, which is written to `runs/NAME`; by default the recipe file's."""
    task: TaskConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def bridge(self) -> BridgeConfig:
        """The bridge's own part of the recipe."""
        return BridgeConfig(**{name: getattr(self, name) for name in BridgeConfig.model_fields})


# ---------------------------------------------------------------------------------------------------------------------
# Reading

_Config = TypeVar("_Config", bound=FrozenConfig)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `a.b=value` overrides, values in YAML.

    Relative paths in the recipe (task data, base model folders) are meant from the recipe's own folder if they exist
    there, else from the working directory; they become absolute, so that a run can be used from anywhere.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or a value out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"No recipe at {path}. Give the path of a YAML file; `recipes/` has examples.")
    data = parse_yaml(path.read_text(encoding="utf-8"), where=str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, wanted a mapping of recipe keys to values.")
    for override in overrides:
        _apply_override(data, override)
    data.setdefault("name", path.stem)
    resolve_paths(data, path.parent)
    return build_config(Recipe, data, where=str(path))


def build_config(kind: type[_Config], data: Any, *, where: str) -> _Config:
    """Validate `data` as a `kind`; `where` opens the error message."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_complaints(kind, error))) from None


def parse_yaml(text: str, *, where: str) -> Any:
    """Parse YAML safely; `where` opens the error message."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"Override {override!r} is not of the form key.path=value, such as training.seed=1.")
    *parents, last = key.strip().split(".")
    node = data
    for name in parents:
        child = node.get(name)
        if isinstance(child, str) and name in _NAMED_PARTS:
            child = {"name": child}
        node[name] = child if isinstance(child, dict) else {}
        node = node[name]
    parsed = parse_yaml(value, where=f"The value of override {override!r}")
    if node is data and last in ("encoder", "llm") and isinstance(parsed, str) and isinstance(node.get(last), dict):
        node[last] = node[last] | {"name": parsed}  # another model, the same dtype and layers
    else:
        node[last] = parsed


def resolve_paths(data: dict[str, Any], folder: Path) -> None:
    """Make a recipe's paths absolute, in place: as seen from `folder` if they are there, else from the working folder.

    Names that are no path of anything (of the hub) stay.
    """

    def resolve(node: Any, key: str) -> None:
        if isinstance(node, dict) and isinstance(node.get(key), str):
            for candidate in (folder / node[key], Path(node[key])):
                if node[key] != EMBEDDED and candidate.exists():
                    node[key] = str(candidate.resolve())
                    return

    for part in ("encoder", "llm"):
        if isinstance(data.get(part), str):
            data[part] = {"name": data[part]}
        resolve(data.get(part), "name")
    task = data.get("task")
    resolve(task, "data")
    resolve(task, "train_data")
    if isinstance(task, dict) and isinstance(files := task.get("files"), dict):
        resolve(files, "train")
        resolve(files, "dev")
        for language in files.get("test") or {}:
            resolve(files["test"], language)
    if isinstance(training := data.get("training"), dict):
        resolve(training.get("self_distillation"), "texts")


def _complaints(kind: type[BaseModel], error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        tags = {"own", "builtin"} | {name for name in _fusion_names() if len(item["loc"]) > 1}
        location = [str(part) for part in item["loc"] if part not in tags]
        key = ".".join(location)
        match item["type"]:
            case "extra_forbidden":
                yield _unknown_key(kind, [str(part) for part in item["loc"]], location)
            case "union_tag_invalid":
                found = str(item["ctx"]["tag"])
                known = _fusion_names()
                guess = nearest(found, known)
                hint = f" Did you mean {guess!r}?" if guess else ""
                yield f"unknown {key} {found!r}.{hint} Known: {', '.join(sorted(known))}"
            case "union_tag_not_found":
                yield f"{key} has no name; known: {', '.join(sorted(_fusion_names()))}"
            case "literal_error" if isinstance(item["input"], str):
                known = re.findall(r"'([^']*)'", item["ctx"]["expected"])
                guess = nearest(item["input"], known)
                hint = f" Did you mean {guess!r}?" if guess else ""
                yield f"unknown {key} {item['input']!r}.{hint} Known: {', '.join(sorted(known))}"
            case "missing":
                yield f"{key} is missing"
            case _:
                message = item["msg"].removeprefix("Value error, ")
                yield f"{key or 'recipe'}: {message} (found {_short(item['input'])})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fusion_names() -> list[str]:
    return [*_fusions(), "recommended"]


def _fusions() -> dict[str, type[BaseModel]]:
    """Return each fusion's config by its name."""
    return {part.__metadata__[0].tag: get_args(part)[0] for part in get_args(get_args(FusionConfig)[0])}


def _unknown_key(kind: type[BaseModel], place: list[str], location: list[str]) -> str:
    """Name the nearest known key at the place where the unknown one stands, or the fusions that have that key.

    Args:
        kind: of config.
        place: of the key, as pydantic says it: with the fusion's name after `fusion`.
        location: the same as in a recipe.
    """
    known = set(_fields_at(kind, location[:-1]))
    if place[-3:-2] == ["fusion"] and (fusion := _fusions().get(place[-2])) is not None:
        known = set(fusion.model_fields)
        having = sorted(name for name, other in _fusions().items() if location[-1] in other.model_fields)
        if having:
            return (
                f"unknown key {'.'.join(location)!r}: fusion {place[-2]!r} takes none; these do: {', '.join(having)}. "
                f"Known here: {', '.join(sorted(known))}"
            )
    guess = nearest(location[-1], known)
    hint = f" Did you mean {guess!r}?" if guess else ""
    listing = f" Known here: {', '.join(sorted(known))}" if known else ""
    return f"unknown key {'.'.join(location)!r}.{hint}{listing}"


def _fields_at(kind: type[BaseModel], parents: Sequence[str]) -> Iterator[str]:
    kinds = [kind]
    for name in parents:
        kinds = [
            k for owner in kinds if name in owner.model_fields for k in _models_in(owner.model_fields[name].annotation)
        ]
    for owner in kinds:
        yield from owner.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _models_in(part)
