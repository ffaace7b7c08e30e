"""Self-distillation: what the teacher predicts, what is kept of it, and what is learned from it."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from layerbridge.config import BridgeConfig, PromptConfig, Recipe, TrainingConfig, build_config, load_recipe
from layerbridge.data.example import Example
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.bridge import Bridge
from layerbridge.results import setup_sha256
from layerbridge.training import self_distillation
from layerbridge.training.self_distillation import Kept, Teacher, distillation_loss, keep, read_texts
from layerbridge.training.token_rows import TokenRows
from layerbridge.training.train import train
from layerbridge.training.trainer import last_complete_checkpoint
from tests import tiny
from tests.training.test_train import recipe as make_recipe
from tests.training.test_train import rows as rows
from tests.training.test_train import run_until_killed

TEXTS = ("the cat sat on the mat", "one", "two three Label: ", "ශ්‍රී positive cat " * 3)
ANSWERS = ("positive", "no", "one two three four", "negative")
COLUMN = "self_distillation_loss"


def examples(texts=TEXTS, answers=ANSWERS):
    pairs = zip(texts, answers, strict=True)
    return [Example(id=str(n), language="en", text=text, answer=answer) for n, (text, answer) in enumerate(pairs)]


def bridge_of(tiny_models, llm="llama", *, lora=None, prompt=None) -> Bridge:
    config = {"encoder": tiny_models["mt5"], "llm": {"name": tiny_models[llm], "lora": lora}, "prompt": prompt or {}}
    return Bridge.build(build_config(BridgeConfig, config, where="test"), seed=0)


def teacher_of(bridge, *, answered=True, temperature=1.0, max_text_tokens=200) -> tuple[Teacher, TokenRows]:
    rows = TokenRows(examples(), bridge.processor, TrainingConfig(), answered=answered)
    return Teacher.read(bridge, rows, temperature=temperature, max_text_tokens=max_text_tokens), rows


def recipe(tiny_models, rows, *, llm="llama", dropout=0.1, task=None, distillation=None, **training) -> Recipe:
    data = make_recipe(tiny_models, rows, llm=llm, task=task, **training).model_dump(mode="json")
    data["fusion"]["dropout"] = dropout
    data["training"]["self_distillation"] = distillation if distillation is not None else {}
    return build_config(Recipe, data, where="test")


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def record_of(run):
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


# --- the loss --------------------------------------------------------------------------------------------------------


def logits(seed, count=5, vocabulary=40, spread=4.0):
    return spread * torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top", [None, 6])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_at_the_teachers_logits_the_loss_and_its_gradient_are_zero(monkeypatch, top, temperature):
    if top is not None:
        monkeypatch.setattr(self_distillation, "WHOLE", 10)
        monkeypatch.setattr(self_distillation, "TOP", top)
    ours_AV = logits(0).requires_grad_()
    kept = keep(ours_AV.detach(), temperature)
    assert kept.log_probs_AK.shape[1] == (40 if top is None else top + 1)
    loss = distillation_loss(ours_AV, kept, temperature)
    loss.backward()
    assert 0 <= loss.item() < 1e-5, "float16 rounds"
    assert ours_AV.grad.abs().max() < 2e-3
    exact = Kept(torch.log_softmax(ours_AV.detach() / temperature, dim=-1), None)
    ours_AV.grad = None
    loss = distillation_loss(ours_AV, exact, temperature)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert ours_AV.grad.abs().max() < 1e-5


@given(seed=st.integers(0, 99), temperature=st.sampled_from([0.5, 1.0, 3.0]))
@settings(deadline=None)
def test_the_loss_is_torchs_own_kl_times_the_temperature_squared(seed, temperature):
    teacher_AV, student_AV = logits(seed), logits(seed + 100)
    p, q = (torch.distributions.Categorical(logits=x.double() / temperature) for x in (teacher_AV, student_AV))
    wanted = temperature**2 * torch.distributions.kl_divergence(p, q).sum().item()
    found = distillation_loss(student_AV, keep(teacher_AV, temperature), temperature).item()
    assert found == pytest.approx(wanted, rel=2e-3, abs=1e-4)


@given(seed=st.integers(0, 99), top=st.integers(1, 39))
@settings(deadline=None)
def test_the_loss_over_the_most_probable_tokens_is_a_lower_bound_and_exact_where_the_rest_is_nothing(seed, top):
    teacher_AV, student_AV = logits(seed), logits(seed + 100)
    whole = distillation_loss(student_AV, keep(teacher_AV, 1.0), 1.0).item()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_distillation, "WHOLE", 10)
        patch.setattr(self_distillation, "TOP", top)
        kept = keep(teacher_AV, 1.0)
        sharp = keep(10 * teacher_AV, 1.0)
    assert kept.ids_AK.shape == (5, top)
    assert kept.log_probs_AK.float().exp().sum(dim=1).tolist() == pytest.approx([1.0] * 5, abs=1e-2)
    assert -1e-4 <= distillation_loss(student_AV, kept, 1.0).item() <= whole + 1e-2
    if sharp.log_probs_AK[:, -1].max() < -12:
        sharp_whole = distillation_loss(student_AV, keep(10 * teacher_AV, 1.0), 1.0).item()
        assert distillation_loss(student_AV, sharp, 1.0).item() == pytest.approx(sharp_whole, rel=2e-3)


def test_the_loss_is_finite_where_the_teacher_excludes_tokens():
    teacher_AV = logits(0)
    teacher_AV[:, 7] = float("-inf")
    student_AV = logits(1).requires_grad_()
    loss = distillation_loss(student_AV, keep(teacher_AV, 1.0), 1.0)
    loss.backward()
    assert loss.isfinite()
    assert student_AV.grad.isfinite().all()


# --- the teacher -----------------------------------------------------------------------------------------------------


PROMPTS = {
    "none": PromptConfig(),
    "the same for all": PromptConfig(text="Answer:"),
    "with the text": PromptConfig(text="Answer:", llm_reads_text=True),
}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("llm", tiny.LLMS)
def test_the_teacher_predicts_what_a_plain_forward_pass_over_the_text_predicts(tiny_models, monkeypatch, llm, prompt):
    monkeypatch.setattr(self_distillation, "TOKENS_AT_ONCE", 130)  # several passes
    bridge = bridge_of(tiny_models, llm, prompt=PROMPTS[prompt].model_dump())
    teacher, rows = teacher_of(bridge, temperature=2.0)
    tokenizer = bridge.processor.llm_tokenizer
    for number, example in enumerate(examples()):
        text = example.text if prompt != "with the text" else f"{example.text}\n"
        parts = [text, "" if prompt == "none" else "Answer:"]
        if prompt == "with the text":
            parts = ["".join(parts)]
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids = [*bos, *(i for part in parts for i in tokenizer(part, add_special_tokens=False)["input_ids"])]
        answer = [*tokenizer(example.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits_TV = bridge.llm(torch.tensor([ids + answer])).logits[0]
        wanted_AV = torch.softmax(logits_TV[len(ids) - 1 : -1].float() / 2.0, dim=-1)
        kept = teacher.of_rows([number], torch.device("cpu"))
        assert kept.ids_AK is None
        torch.testing.assert_close(kept.log_probs_AK.float().exp(), wanted_AV, atol=2e-3, rtol=2e-2)
    assert teacher.describe()["distributions"] == sum(len(rows[n].answer) for n in range(len(rows)))


def test_without_answers_the_teacher_predicts_what_comes_first(tiny_models):
    bridge = bridge_of(tiny_models)
    answered, rows = teacher_of(bridge)
    first, unanswered = teacher_of(bridge, answered=False)
    assert first.describe()["distributions"] == len(rows)
    assert {int(unanswered[n].answer) for n in range(len(rows))} == {bridge.processor.llm_tokenizer.eos_token_id}
    device = torch.device("cpu")
    for number in range(len(rows)):
        found, wanted = (teacher.of_rows([number], device).log_probs_AK[0] for teacher in (first, answered))
        torch.testing.assert_close(found.float().exp(), wanted.float().exp(), atol=2e-3, rtol=2e-2)


def test_what_is_kept_of_large_vocabularies_is_the_most_probable_tokens(tiny_models, monkeypatch):
    whole, _ = teacher_of(bridge_of(tiny_models))
    monkeypatch.setattr(self_distillation, "WHOLE", 100)
    monkeypatch.setattr(self_distillation, "TOP", 8)
    few, _ = teacher_of(bridge_of(tiny_models))
    assert few.describe()["kept_tokens"] == 8
    assert few.describe()["bytes"] < whole.describe()["bytes"] / 10
    numbers, device = [2, 0], torch.device("cpu")
    kept, all_AV = few.of_rows(numbers, device), whole.of_rows(numbers, device).log_probs_AK.float()
    top_AK = all_AV.topk(8, dim=-1).values
    torch.testing.assert_close(kept.log_probs_AK[:, :8].float(), top_AK, atol=1e-2, rtol=0)
    torch.testing.assert_close(all_AV.gather(1, kept.ids_AK.long()), top_AK, atol=1e-2, rtol=0)
    rest_A = 1 - top_AK.exp().sum(dim=1)
    torch.testing.assert_close(kept.log_probs_AK[:, 8].float().exp(), rest_A, atol=1e-2, rtol=0)


def test_adapters_are_off_for_the_teacher_and_train_afterwards(tiny_models):
    plain, _ = teacher_of(bridge_of(tiny_models))
    bridge = bridge_of(tiny_models, lora={"rank": 2})
    trained = set(bridge.trained_parameters())
    with torch.no_grad():
        for name, parameter in bridge.trained_parameters().items():
            if "lora_" in name:
                parameter.normal_()
    before = bridge.llm(torch.tensor([[5, 6, 7]])).logits
    found, _ = teacher_of(bridge)
    assert torch.equal(found.kept.log_probs_AK, plain.kept.log_probs_AK)
    assert set(bridge.trained_parameters()) == trained
    assert torch.equal(bridge.llm(torch.tensor([[5, 6, 7]])).logits, before)


def test_texts_over_the_limit_are_cut_for_the_teacher_and_counted(tiny_models):
    bridge = bridge_of(tiny_models)
    cut, _ = teacher_of(bridge, max_text_tokens=3)
    tokenizer = bridge.processor.llm_tokenizer
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    assert cut.describe()["truncated_texts"] == sum(length > 3 for length in lengths)
    ids = [tokenizer.bos_token_id, *tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"][:3]]
    with torch.no_grad():
        wanted_V = torch.softmax(bridge.llm(torch.tensor([ids])).logits[0, -1], dim=-1)
    found_V = cut.of_rows([0], torch.device("cpu")).log_probs_AK[0].float().exp()
    torch.testing.assert_close(found_V, wanted_V, atol=2e-3, rtol=2e-2)


def test_a_text_without_a_token_for_the_llm_is_refused(tiny_models, monkeypatch):
    bridge = bridge_of(tiny_models)
    rows = TokenRows(examples(), bridge.processor, TrainingConfig())
    monkeypatch.setattr(bridge.processor, "llm_tokenizer", lambda texts, **_: {"input_ids": [[] for _ in texts]})
    bridge.processor.llm_tokenizer.bos_token_id = 2
    with pytest.raises(DataError, match="Text 1 of 4 .*tokenises to nothing with the LLM's tokenizer"):
        Teacher.read(bridge, rows, temperature=1.0, max_text_tokens=9)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_has_the_losses_in_columns_of_their_own_and_on_record(tiny_models, rows, tmp_path):
    train(recipe(tiny_models, rows, distillation={"weight": 0.5}), tmp_path / "run", progress=False)
    logs = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in logs] == [1, 2, 3, 4, 5, 6]
    for row in logs:
        assert row["loss"] == pytest.approx(row["answer_loss"] + 0.5 * row[COLUMN], rel=1e-4)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["self_distillation"]["kept_tokens"] == tiny.VOCABULARY
    assert record["self_distillation"]["bytes"] == 2 * tiny.VOCABULARY * record["self_distillation"]["distributions"]


def test_runs_without_it_are_as_before(tiny_models, rows, tmp_path):
    train(make_recipe(tiny_models, rows), tmp_path / "run", progress=False)
    assert not any(COLUMN in row or "answer_loss" in row for row in metrics(tmp_path / "run"))
    assert "self_distillation" not in json.loads((tmp_path / "run/run.json").read_text())


def test_the_divergence_falls_when_it_is_learned(tiny_models, rows, tmp_path):
    options = {"max_steps": 30, "learning_rate": 1e-2, "warmup_fraction": 0.0, "select": "last", "eval_every": 30}
    train(recipe(tiny_models, rows, distillation={"weight": 5.0}, **options), tmp_path / "run", progress=False)
    found = [row[COLUMN] for row in metrics(tmp_path / "run") if COLUMN in row]
    assert found[-1] < 0.6 * found[0]


def test_the_stage_before_lowers_the_divergence_and_reads_no_answer(tiny_models, rows, tmp_path):
    """The same texts with other answers: the stage ends in the same tensors."""
    ends = []
    for name, answers in (("as they are", None), ("permuted", {"positive": "negative", "negative": "positive"})):
        task = None if answers is None else {"answers": answers}
        config = recipe(
            tiny_models,
            rows,
            task=task,
            distillation={"weight": 0, "epochs_before": 5},
            learning_rate=1e-2,
            eval_every=30,
            max_steps=1,
        )
        train(config, tmp_path / name, progress=False)
        ends.append(load_file(tmp_path / name / "self_distillation/checkpoints/checkpoint-30/bridge.safetensors"))
        stage = [row for row in metrics(tmp_path / name) if row.get("stage") == "self_distillation"]
        losses = [row[COLUMN] for row in stage if COLUMN in row]
        assert losses[-1] < 0.7 * losses[0]
        assert not any("loss" in row or "answer_loss" in row for row in stage)
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert (record["stage"]["rows"], record["stage"]["steps"], record["steps"]) == (48, 30, 1)
        assert not any(COLUMN in row for row in metrics(tmp_path / name) if "stage" not in row)
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_the_task_begins_with_what_the_stage_learned(tiny_models, rows, tmp_path):
    """With its one step in warm-up, at a learning rate of zero, the run ends where its stage ended."""
    distillation = {"weight": 0, "epochs_before": 1}
    config = recipe(tiny_models, rows, distillation=distillation, select="last", max_steps=1, warmup_fraction=1.0)
    bridge = train(config, tmp_path / "run", progress=False)
    stage = load_file(tmp_path / "run/self_distillation/checkpoints/checkpoint-6/bridge.safetensors")
    start = Bridge.build(config.bridge, seed=0).trained_state()
    assert all(torch.equal(stage[name], tensor) for name, tensor in bridge.trained_state().items())
    assert any(not torch.equal(start[name], tensor) for name, tensor in stage.items())


def test_micro_batches_give_the_gradient_of_the_whole_batch(tiny_models, rows, tmp_path):
    """Answers of different lengths: a mean of means would differ."""
    task = {"answers": {"positive": "one two three four", "negative": "no"}}
    weights, columns = [], []
    for micro in (8, 2):
        options = {"micro_batch_size": micro, "max_steps": 3, "schedule": "constant", "warmup_fraction": 0.0}
        config = recipe(
            tiny_models, rows, dropout=0.0, task=task, distillation={"weight": 2.0}, adam_epsilon=1e-3, **options
        )
        weights.append(train(config, tmp_path / str(micro), progress=False).trained_state())
        columns.append([row[COLUMN] for row in metrics(tmp_path / str(micro)) if COLUMN in row])
    assert columns[0] == pytest.approx(columns[1], rel=1e-4)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kill_at", "left"),
    [(23, ("checkpoints", "checkpoint-20")), (8, ("self_distillation/checkpoints", "checkpoint-4"))],
    ids=["in the task", "in the stage before it"],
)
def test_a_killed_run_ends_where_an_undisturbed_one_ends(tiny_models, rows, tmp_path, kill_at, left):
    """The stage has 12 steps and the task 30; a kill at step 8 is in the stage."""
    distillation = {"epochs_before": 2, "temperature": 2.0}
    options = {"max_steps": 30, "eval_every": 4 if kill_at == 8 else 10, "select": "last"}
    config = recipe(tiny_models, rows, distillation=distillation, **options)
    (tmp_path / "recipe.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    straight = train(config, tmp_path / "straight", progress=False).trained_state()
    run_until_killed(tmp_path / "recipe.yaml", tmp_path / "killed", kill_at=kill_at)
    folder = tmp_path / "killed" / left[0]
    assert last_complete_checkpoint(folder.parent).name == left[1]
    resumed = train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "killed", progress=False).trained_state()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    looks = [
        [(row.get("stage"), row["step"], row.get("eval_loss"), row.get(COLUMN)) for row in metrics(tmp_path / run)]
        for run in ("straight", "killed")
    ]
    assert looks[0] == looks[1]
    assert [record_of(tmp_path / run)["resumed"] for run in ("straight", "killed")] == [False, True]


def test_a_run_killed_between_the_stage_and_the_first_checkpoint_does_not_do_the_stage_again(
    tiny_models, rows, tmp_path, monkeypatch
):
    config = recipe(tiny_models, rows, distillation={"epochs_before": 1}, select="last")
    straight = train(config, tmp_path / "straight", progress=False).trained_state()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("layerbridge.training.train.BridgeTrainer", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", progress=False)
    assert last_complete_checkpoint(tmp_path / "run/self_distillation").name == "checkpoint-6"
    monkeypatch.setattr("layerbridge.training.distillation_stage.BridgeTrainer", killed)
    resumed = train(config, tmp_path / "run", progress=False).trained_state()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    assert record_of(tmp_path / "run")["resumed"] is True, "from the stage's last checkpoint"


def test_a_run_goes_on_with_its_texts_in_another_place(tiny_models, rows, tmp_path):
    distillation = {"epochs_before": 1, "texts": str(tmp_path / "english.txt")}
    (tmp_path / "english.txt").write_text("the cat sat\none two three\n" * 6)
    config = recipe(tiny_models, rows, distillation=distillation, select="last")
    train(config, tmp_path / "run", progress=False)
    begun = record_of(tmp_path / "run")
    (tmp_path / "run/run.json").write_text(json.dumps(begun | {"status": "training"}))
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "english.txt").rename(tmp_path / "elsewhere/other.txt")
    distillation["texts"] = str(moved)
    train(recipe(tiny_models, rows, distillation=distillation, select="last"), tmp_path / "run", progress=False)
    found = record_of(tmp_path / "run")
    assert (found["status"], found["resumed"]) == ("finished", True)
    assert found["stage_sha256"] == begun["stage_sha256"]
    assert load_recipe(tmp_path / "run/recipe.yaml").training.self_distillation.texts == str(moved)
    more = recipe(tiny_models, rows, distillation=distillation | {"epochs_before": 2}, select="last")
    with pytest.raises(ConfigError, match="begun with another recipe: training differ"):
        train(more, tmp_path / "run", progress=False)


def test_texts_to_distil_on_over_the_limit_are_counted_and_said(tiny_models, rows, tmp_path, caplog):
    (tmp_path / "english.txt").write_text("the cat\n" * 3 + "the cat sat on the mat\n" * 2)
    distillation = {"weight": 0, "epochs_before": 1, "texts": str(tmp_path / "english.txt")}
    options = {"max_source_tokens": 4, "max_steps": 1, "select": "last"}
    train(recipe(tiny_models, rows, distillation=distillation, **options), tmp_path / "run", progress=False)
    record = record_of(tmp_path / "run")
    assert (record["stage"]["truncated_texts"], record["source_token_limit"]) == (2, 4)
    assert "2 of 5 texts to distil on are longer than 4 encoder tokens and are cut there." in caplog.text
    caplog.clear()
    distillation = {"weight": 0, "epochs_before": 1}
    train(recipe(tiny_models, rows, distillation=distillation, **options), tmp_path / "rows", progress=False)
    assert record_of(tmp_path / "rows")["stage"]["truncated_texts"] == 48
    assert caplog.text.count("are cut there") == 1, "of texts that are the training rows' it is said once"


def test_the_stage_may_read_texts_of_a_file_and_their_content_is_held_to(tiny_models, rows, tmp_path):
    path = tmp_path / "english.txt"
    path.write_text("\ufeffthe cat sat\n\n one two three \n" * 6, encoding="utf-8")
    config = recipe(tiny_models, rows, distillation={"epochs_before": 1, "texts": str(path)})
    train(config, tmp_path / "run", progress=False, cache=tmp_path / "cache")
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["stage"]["rows"], record["stage"]["source"]) == (11 + 1, "local:english.txt")
    assert record["languages_seen"] == ["en"]
    assert record["features"]["encoder_passes"] == 0, "texts of the file are kept too"
    assert [example.text for example in read_texts(path).examples[:2]] == ["the cat sat", "one two three"]
    path.write_text("another\n")
    (tmp_path / "run/run.json").write_text(json.dumps(record | {"status": "training"}))
    with pytest.raises(DataError, match=f"begun on stage rows with sha256 {record['stage_sha256'][:16]}"):
        train(config, tmp_path / "run", progress=False)


def test_files_of_no_texts_are_refused_before_a_model_is_loaded(tiny_models, rows, tmp_path):
    for content, words in ((None, "No file"), (b"\n \n", "2 lines and no text"), (b"\xff\xfe", "not UTF-8 at byte 0")):
        path = tmp_path / "texts.txt"
        if content is not None:
            path.write_bytes(content)
        config = recipe(
            tiny_models | {"llama": "no/where"}, rows, distillation={"epochs_before": 1, "texts": str(path)}
        )
        with pytest.raises(DataError, match=words):
            train(config, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": 0}, "weight and epochs_before are both 0"),
        ({"texts": "x.txt"}, "texts are read in the stage before"),
        ({"temperature": 0}, "greater than 0"),
    ],
)
def test_options_that_do_nothing_are_refused(tiny_models, rows, options, words):
    with pytest.raises(ConfigError, match=words):
        recipe(tiny_models, rows, distillation=options)


def test_the_setup_hash_sees_it_only_where_it_is_set_and_not_the_folder_of_its_texts(tiny_models, rows):
    plain = make_recipe(tiny_models, rows)
    data = plain.model_dump(mode="json")

    def hashed(distillation):
        training = data["training"] | {"self_distillation": distillation}
        return setup_sha256(build_config(Recipe, data | {"training": training}, where="test"))

    assert hashed(None) == setup_sha256(plain)
    with_texts = [hashed({"epochs_before": 1, "texts": text}) for text in ("a/t.txt", "b/t.txt", "a/u.txt")]
    assert with_texts[0] == with_texts[1] != with_texts[2]
    assert len({hashed(None), hashed({}), hashed({"weight": 2.0}), *with_texts}) == 5


def test_paths_of_texts_are_meant_from_the_recipes_folder(tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text("x")
    path = tmp_path / "recipe.yaml"
    path.write_text("task: sib200\ntraining: {self_distillation: {epochs_before: 1, texts: t.txt}}")
    monkeypatch.chdir("/")
    assert load_recipe(path).training.self_distillation.texts == str(tmp_path / "t.txt")
    assert load_recipe(path, ["training.self_distillation.weight=0.25"]).training.self_distillation.weight == 0.25
