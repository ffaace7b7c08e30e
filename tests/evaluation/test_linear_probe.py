"""The linear probe: what scikit-learn makes of the same pooled states, fitted here on its own."""

import hashlib
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from layerbridge.config import BridgeConfig, BuiltinTaskConfig, EncoderConfig, EvaluationConfig, LLMConfig
from layerbridge.data.example import Example, Split
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation import linear_probe
from layerbridge.evaluation.linear_probe import NEVER_SEEN, STRENGTHS, LinearProbe, evaluate_linear_probe
from layerbridge.evaluation.predictions import predictions_path, read_predictions
from layerbridge.model.bridge import Bridge
from layerbridge.model.fusion import Fused
from layerbridge.model.processor import BridgeInputs
from layerbridge.model.states import LiveStates
from layerbridge.results import read_results
from tests.evaluation.fakes import ANSWERS, SHA, FakeTask

WIDTH = 6


@dataclass
class FakeStates:
    """A bridge whose states are known: a word's vector, and for `fused` its double-length negative half."""

    fingerprint_: str = SHA["a"]
    config: BridgeConfig = field(default_factory=BridgeConfig)
    encoded: list[str] = field(default_factory=list)
    fail_on: str | None = None
    device = torch.device("cpu")

    @property
    def bases(self):
        return {"encoder": {"name": "embedded", "revision": None, "fingerprint": "e1", "tokenizer_fingerprint": "e2"}}

    def fingerprint(self):
        return self.fingerprint_

    def eval(self):
        return self

    def count_source_tokens(self, texts):
        return [len(text.split()) for text in texts]

    def source_limit(self, max_source_tokens):
        return max_source_tokens

    def processor(self, texts, *, max_source_tokens):
        if self.fail_on and any(self.fail_on in text for text in texts):
            raise KeyboardInterrupt
        self.encoded += texts
        rows = [text.split()[:max_source_tokens] for text in texts]
        width = max(map(len, rows))
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor([int(hashlib.sha256(w.encode()).hexdigest()[:6], 16) for w in row])
            mask[index, : len(row)] = True
        empty = torch.zeros((len(rows), 0), dtype=torch.long)
        return BridgeInputs(source_ids=ids, source_mask=mask, prompt_ids=empty, prompt_mask=empty.bool())

    def layers(self, inputs):
        states = torch.stack([vector(int(i)) for i in inputs.source_ids.flatten()]).view(*inputs.source_ids.shape, -1)
        return [torch.full_like(states, 7.0), states + 99.0 * ~inputs.source_mask.unsqueeze(-1)]  # rubbish at padding

    def encode(self, inputs):
        return LiveStates.of(self.layers(inputs), inputs.source_mask)

    def fuse(self, inputs):
        states = self.layers(inputs)[-1]
        return Fused(-0.5 * states[..., :3], torch.ones((*inputs.source_ids.shape, 2)))


def vector(number):
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(number))


def pooled(texts, limit=512, states="last_layer"):
    """The mean of the words' vectors, with numpy alone."""
    rows = []
    for text in texts:
        words = text.split()[:limit]
        ids = [int(hashlib.sha256(w.encode()).hexdigest()[:6], 16) for w in words]
        rows.append(np.mean([vector(i).numpy().astype(np.float64) for i in ids], axis=0))
    found = np.array(rows)
    return -0.5 * found[:, :3] if states == "fused" else found


def split_of(language, rows, *, seed, answers=ANSWERS):
    """Texts whose words lean towards their answer, of different lengths."""
    draw = np.random.default_rng(seed)
    examples = []
    for number in range(rows):
        answer = answers[int(draw.integers(len(answers)))]
        words = [f"{answer if draw.random() < 0.7 else 'any'}{draw.integers(4)}" for _ in range(draw.integers(2, 12))]
        words[0] = f"{language}{seed}x{number}"  # no text twice
        examples.append(Example(id=str(number), language=language, text=" ".join(words), answer=answer))
    return Split.of(examples, source="made")


@dataclass
class ProbedTask(FakeTask):
    train: Split = field(default_factory=lambda: split_of("en", 80, seed=1))
    dev: Split = field(default_factory=lambda: split_of("en", 40, seed=2))
    seeds: list[int] = field(default_factory=list)

    def load_training(self, rows, *, seed):
        self.seeds.append(seed)
        return self.train, self.dev


@pytest.fixture
def task():
    return ProbedTask({"en": split_of("en", 50, seed=3), "si": split_of("si", 60, seed=4)})


def evaluate(folder, task, bridge=None, *, states="last_layer", **options):
    splits = {code: task.load(code, "test") for code in task.languages}
    options = {"seed": 5, "run": "probe", "config": EvaluationConfig(batch_size=7)} | options
    config = options.pop("config")
    rows = BuiltinTaskConfig(name="news")
    return evaluate_linear_probe(bridge or FakeStates(), task, rows, splits, config, folder, states=states, **options)


def texts_of(split):
    return [example.text for example in split.examples]


def gold_of(split):
    return np.array([example.answer for example in split.examples])


def fitted(train, strength, *, states="last_layer", limit=200):
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
    return probe.fit(pooled(texts_of(train), limit, states), gold_of(train))


@pytest.mark.parametrize("states", ["last_layer", "fused"])
def test_predictions_are_those_of_scikit_learn_on_the_same_states(tmp_path, task, states):
    results = evaluate(tmp_path, task, states=states, max_train_source_tokens=6)
    dev = pooled(texts_of(task.dev), 6, states)
    right = {
        c: (fitted(task.train, c, states=states, limit=6).predict(dev) == gold_of(task.dev)).sum() for c in STRENGTHS
    }
    best = min(c for c in STRENGTHS if right[c] == max(right.values()))
    probe = fitted(task.train, best, states=states, limit=6)
    for language in task.languages:
        split = task.load(language, "test")
        states_RE = pooled(texts_of(split), states=states)
        _, rows = read_predictions(predictions_path(tmp_path, language))
        assert [row.scored for row in rows] == probe.predict(states_RE).tolist()
        expected = probe.predict_log_proba(states_RE)
        for row, log_probs in zip(rows, expected, strict=True):
            found = [row.log_probs[answer] for answer in probe.classes_]
            assert found == pytest.approx(log_probs.tolist(), abs=1e-6)
            assert row.generated is None
        assert (
            results.languages[language].methods["score"].correct == (probe.predict(states_RE) == gold_of(split)).sum()
        )
    assert results.averages("score").all > results.majority_averages.all


def test_without_dev_rows_the_strength_is_chosen_by_cross_validation(task):
    train = task.train
    probe = LinearProbe(FakeStates(), "last_layer", train, Split.of([], source="none"))
    states_RE, gold = pooled(texts_of(train), 200), gold_of(train)
    right = {}
    for c in STRENGTHS:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000))
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        right[c] = (cross_val_predict(pipeline, states_RE, gold, cv=folds) == gold).sum()
    best = min(c for c in STRENGTHS if right[c] == max(right.values()))
    assert best == probe.model[-1].C
    assert len(set(right.values())) > 1


def test_the_origin_says_what_it_is(tmp_path, task):
    found = evaluate(tmp_path, task).provenance
    assert (found.kind, found.fusion, found.methods) == ("baseline", "linear_probe_last_layer", ("score",))
    assert (found.seed, found.languages_seen, set(found.bases)) == (5, ("en",), {"encoder"})
    assert task.seeds == [5]


def test_seeds_share_a_set_up_and_a_last_layer_probe_does_not_depend_on_the_bridge(tmp_path, task):
    def probe(states, bridge=None, **options):
        return evaluate(
            tmp_path / str(len(list(tmp_path.iterdir()))), task, bridge, states=states, **options
        ).provenance

    other = FakeStates(fingerprint_=SHA["b"])
    last = [probe("last_layer"), probe("last_layer", other, seed=6)]
    assert last[0].checkpoint_sha256 == last[1].checkpoint_sha256, "the same rows and states: one probe, not two seeds"
    fused = [probe("fused"), probe("fused", other, seed=6), probe("fused", bridge_setup_sha256=SHA["c"])]
    assert fused[0].checkpoint_sha256 != fused[1].checkpoint_sha256
    assert fused[0].setup_sha256 == fused[1].setup_sha256 != fused[2].setup_sha256
    task.train = split_of("en", 70, seed=9)
    assert probe("last_layer").checkpoint_sha256 != last[0].checkpoint_sha256


def test_finished_languages_are_kept_and_a_kill_changes_nothing(tmp_path, task):
    whole = evaluate(tmp_path / "whole", task)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "cut", task, FakeStates(fail_on=task.load("si", "test").examples[0].text))
    again = FakeStates()
    resumed = evaluate(tmp_path / "cut", task, again)
    assert not set(again.encoded) & set(texts_of(task.load("en", "test")))
    assert resumed.languages == whole.languages
    for language in task.languages:
        pair = [read_predictions(predictions_path(tmp_path / name, language))[1] for name in ("whole", "cut")]
        assert pair[0] == pair[1]
    idle = FakeStates()
    evaluate(tmp_path / "cut", task, idle)
    assert idle.encoded == []


def test_an_answer_without_training_rows_is_never_chosen_and_is_a_number(tmp_path, task):
    task.train = split_of("en", 60, seed=1, answers=ANSWERS[:2])
    evaluate(tmp_path, task)
    _, rows = read_predictions(predictions_path(tmp_path, "si"))
    assert {row.log_probs[ANSWERS[2]] for row in rows} == {NEVER_SEEN}
    assert {row.scored for row in rows} <= set(ANSWERS[:2])


def test_one_row_of_an_answer_and_no_dev_rows_still_train(task):
    rows = [*split_of("en", 12, seed=1, answers=ANSWERS[:2]).examples]
    rows.append(Example(id="one", language="en", text="Science1 Science2", answer="Science"))
    probe = LinearProbe(FakeStates(), "last_layer", Split.of(rows, source="s"), Split.of([], source="none"))
    assert probe.model[-1].C == 1.0


def test_what_cannot_be_probed_is_refused(tmp_path, task, monkeypatch):
    with pytest.raises(ConfigError, match="free text"):
        evaluate(tmp_path, ProbedTask({"en": split_of("en", 3, seed=0)}, answers=None))
    task.train = split_of("en", 8, seed=1, answers=ANSWERS[:1])
    with pytest.raises(DataError, match="8 training rows have 1 answer"):
        evaluate(tmp_path, task)
    task.train = split_of("en", 8, seed=1)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"pip install 'layerbridge\[study\]'"):
        evaluate(tmp_path, task)


@pytest.mark.parametrize("states", ["last_layer", "fused"])
def test_a_real_bridge_gives_the_states(tiny_models, tmp_path, task, states):
    """On a tiny bridge: the pooled states are those of each text alone."""
    config = BridgeConfig(
        encoder=EncoderConfig(name=tiny_models["xlmr"]), llm=LLMConfig(name=tiny_models["llama"]), fusion="layer_mean"
    )
    bridge = Bridge.build(config, device="cpu", seed=0)
    probe = LinearProbe(bridge, states, task.train, task.dev)
    texts = texts_of(task.train)[:5]
    together = probe._pool(texts, 512)
    for text, found in zip(texts, together, strict=True):
        inputs = bridge.processor([text])
        layers = [layer[0].double() for layer in bridge.encoder(inputs.source_ids, inputs.source_mask)]
        own = layers[-1] if states == "last_layer" else torch.stack(layers).mean(0)
        assert found == pytest.approx(own.mean(0).tolist(), abs=1e-5)
    results = evaluate(tmp_path, task, bridge, states=states)
    assert results == read_results(tmp_path / "results.json")
    assert results.averages("score").all > results.majority_averages.all


def test_the_module_imports_nothing_heavy():
    names = {"torch", "numpy", "sklearn"}
    assert not names & {name for name in vars(linear_probe) if not name.startswith("_")}
