"""Baseline: a linear probe on the states that a bridge hands over. How much of what the encoder knows gets across?

Multinomial logistic regression on the mean of a text's states over its tokens: of the encoder's last layer, or fused by
a trained bridge. It is trained on the bridge's own training rows and tested as the bridge is; the LLM has no part in
it, so what it reaches and the bridge does not was lost at the LLM's door.

Shapes: B batch, S source tokens, E encoder width, R training rows, N answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layerbridge.config import BuiltinTaskConfig, EvaluationConfig, OwnTaskConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation.baselines import describe_baseline
from layerbridge.evaluation.batches import in_batches
from layerbridge.evaluation.predict import base_origin, predict_languages
from layerbridge.evaluation.score import rescore
from layerbridge.results import Results, config_sha256, json_sha256

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from layerbridge.data.example import Example, Split
    from layerbridge.data.tasks import Task
    from layerbridge.model.bridge import Bridge
    from layerbridge.model.processor import BridgeInputs

States = Literal["last_layer", "fused"]

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Values of C, the inverse of the regularisation, to choose from; of equals the smallest."""
NUM_FOLDS = 5
"""Of the cross-validation, where there are no dev rows."""
MAX_ITERATIONS = 5000
NEVER_SEEN = -1e9
"""Log-probability of an answer without training rows: never chosen, and still a number that JSON has."""


def evaluate_linear_probe(
    bridge: Bridge,
    task: Task,
    task_config: BuiltinTaskConfig | OwnTaskConfig,
    splits: Mapping[str, Split],
    config: EvaluationConfig,
    folder: Path,
    *,
    states: States,
    seed: int,
    run: str,
    max_train_source_tokens: int = 200,
    bridge_setup_sha256: str | None = None,
    progress: bool = False,
) -> Results:
    """Train a probe on a bridge's training rows, test it per language, and write predictions and results.json.

    Nothing is encoded or trained if all languages are there already, just so. The outcome follows from the rows and
    the states alone: the probe has no random start.

    Args:
        bridge: Whose encoder and, for `fused`, whose trained fusion give the states; its feature store is used.
        task: With answers; free text cannot be probed.
        task_config: Which training rows; the bridge's own, to be comparable.
        splits: Language code -> rows, as `load_splits` gives them.
        config: Limits and what fits a batch; of its methods `score` alone is used.
        folder: Evaluation folder; languages that are there already are kept.
        states: `last_layer`: of the encoder's layers handed over the last; `fused`: what the fusion makes of them.
        seed: Of the choice of training rows.
        run: Name in the results.
        max_train_source_tokens: Encoder tokens of a training text; the bridge's own limit in training.
        bridge_setup_sha256: Of `fused`: `setup_sha256` of the recipe that trained the bridge, so that probes of bridges
            trained in different ways do not count as seeds of one set-up.
        progress: Show a bar per language on stderr.

    Raises:
        ConfigError: a free-text task, or scikit-learn is missing.
        DataError: training rows with one answer only, or gold answers that are none of the task's.
    """
    if task.answers is None:
        raise ConfigError(f"Task {task.name!r} is free text, and a linear probe chooses among answers. Leave it out.")
    config = config.model_copy(update={"methods": ("score",)})
    name = f"linear_probe_{states}"
    train, dev = task.load_training(task_config, seed=seed)
    encoder = bridge.bases["encoder"]
    options = bridge.config.encoder.model_dump(mode="json", exclude={"name", "revision", "trust_remote_code"})
    definition: dict[str, Any] = {
        "baseline": name,
        "encoder": [encoder["fingerprint"], encoder.get("tokenizer_fingerprint"), options],
        "rows": task_config.model_dump(mode="json", exclude={"data", "train_data", "files"}),
        "max_train_source_tokens": max_train_source_tokens,
        "strengths": STRENGTHS,
    }
    if states == "fused":
        definition["bridge"] = [config_sha256(bridge.config), bridge_setup_sha256]
    trained_on = {"train": train.sha256, "dev": dev.sha256, "bridge": bridge.fingerprint() if states == "fused" else ""}
    provenance = describe_baseline(
        task,
        config,
        run=run,
        name=name,
        bases={"encoder": base_origin(encoder)},
        checkpoint_sha256=json_sha256(definition | trained_on),
        setup_sha256=json_sha256(definition),
        languages_seen=tuple(dict.fromkeys(example.language for example in train.examples)),
        seed=seed,
    )
    probe: Any = LinearProbe(bridge, states, train, dev, max_train_source_tokens, config)
    predict_languages(probe, task, splits, config, provenance, folder, progress=progress)
    return rescore(folder, provenance=provenance)


class LinearProbe:
    """Answers from pooled states, with a bridge's `score`. It is trained when it is first asked.

    Args:
        bridge: Gives the states.
        states: Which.
        train: Rows to train on.
        dev: Rows to choose C by; without any, by cross-validation in train.
        max_train_source_tokens: Of a training or dev text.
        config: Its `batch_tokens` and `batch_size` say what fits an encoder pass of training and dev rows.
    """

    def __init__(
        self,
        bridge: Bridge,
        states: States,
        train: Split,
        dev: Split,
        max_train_source_tokens: int = 200,
        config: EvaluationConfig | None = None,
    ) -> None:
        self.bridge = bridge
        self.states = states
        self.train = train
        self.dev = dev
        self.max_train_source_tokens = max_train_source_tokens
        self.config = config or EvaluationConfig()

    def count_source_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many encoder tokens each text has before any cut."""
        return self.bridge.count_source_tokens(texts)

    def source_limit(self, max_source_tokens: int) -> int:
        """Return the limit on encoder tokens that holds."""
        return self.bridge.source_limit(max_source_tokens)

    def score(self, texts: Sequence[str], answers: Sequence[str], *, max_source_tokens: int = 512) -> np.ndarray:
        """Return the answers' log-probabilities (B, N); an answer without training rows gets `NEVER_SEEN`."""
        import numpy as np

        found_BN = self.model.predict_log_proba(self._pool(texts, max_source_tokens))
        columns = {answer: column for column, answer in enumerate(self.model.classes_)}
        scores_BN = np.full((len(texts), len(answers)), NEVER_SEEN)
        for place, answer in enumerate(answers):
            if answer in columns:
                scores_BN[:, place] = np.maximum(found_BN[:, columns[answer]], NEVER_SEEN)
        return scores_BN

    @cached_property
    def model(self) -> Any:
        """The trained probe: scikit-learn's standardisation and logistic regression in one."""
        import numpy as np

        answers = [example.answer for example in self.train.examples]
        if len(set(answers)) < 2:
            raise DataError(
                f"The probe's {len(answers)} training rows have {len(set(answers))} answer; wanted rows with two "
                "answers at least. Give it more training rows."
            )
        _need_scikit_learn()
        states_RE = self._features(self.train.examples)
        gold = np.array(answers)
        return _fit(states_RE, gold, self._choose_strength(states_RE, gold))

    def _choose_strength(self, states_RE: np.ndarray, gold: np.ndarray) -> float:
        """Return the C with most dev rows right, or train rows right when left out; of equals the smallest."""
        import numpy as np
        from sklearn.model_selection import StratifiedKFold

        if self.dev.examples:
            dev_states = self._features(self.dev.examples)
            dev_gold = np.array([example.answer for example in self.dev.examples])
            parts = [(states_RE, gold, dev_states, dev_gold)]
        else:
            folds = min(NUM_FOLDS, int(np.unique(gold, return_counts=True)[1].min()))
            if folds < 2:  # some answer has one row alone: left out, it could not be learnt
                return 1.0
            split = StratifiedKFold(folds, shuffle=True, random_state=0).split(states_RE, gold)
            parts = [(states_RE[a], gold[a], states_RE[b], gold[b]) for a, b in split]
        right = {c: sum((_fit(x, y, c).predict(u) == v).sum() for x, y, u, v in parts) for c in STRENGTHS}
        return max(STRENGTHS, key=lambda c: (right[c], -c))

    def _features(self, examples: Sequence[Example]) -> np.ndarray:
        """Return the examples' pooled states (R, E), in their order, encoded in batches of like length."""
        import numpy as np

        texts = [example.text for example in examples]
        limit = self.bridge.source_limit(self.max_train_source_tokens)
        lengths = [min(length, limit) for length in self.bridge.count_source_tokens(texts)]

        def pool(batch: list[int]) -> np.ndarray:
            return self._pool([texts[index] for index in batch], self.max_train_source_tokens)

        batches, pooled = zip(*in_batches(lengths, self.config, pool), strict=True)
        return np.concatenate(pooled)[np.argsort(np.concatenate(batches), kind="stable")]

    def _pool(self, texts: Sequence[str], max_source_tokens: int) -> np.ndarray:
        """Return the mean of each text's states over its tokens (B, E), float64."""
        import torch

        with torch.inference_mode():
            self.bridge.eval()
            inputs = self.bridge.processor(texts, max_source_tokens=max_source_tokens).to(self.bridge.device)
            fused = self.states == "fused"
            states_BSE = self.bridge.fuse(inputs).states_BSE if fused else self._last_layer(inputs)
            real_BS1 = inputs.source_mask.unsqueeze(-1)
            total_BE = states_BSE.double().masked_fill(~real_BS1, 0.0).sum(dim=1)
            return (total_BE / real_BS1.sum(dim=1)).cpu().numpy()

    def _last_layer(self, inputs: BridgeInputs) -> Tensor:
        states = self.bridge.encode(inputs)
        return states.pad(states.layer(states.num_layers - 1))


def _fit(states_RE: np.ndarray, answers: np.ndarray, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_ITERATIONS))
    return probe.fit(states_RE, answers)


def _need_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ConfigError("A linear probe needs scikit-learn: pip install 'layerbridge[study]'.") from None
