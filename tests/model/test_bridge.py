"""The whole bridge, on every pair of tiny encoder and tiny LLM, against one-by-one and against HF's own model."""

import itertools
import json
import shutil

import pytest
import torch

from layerbridge.config import BridgeConfig, EncoderConfig, LLMConfig, LoraConfig, ProjectorConfig, PromptConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.model import scoring
from layerbridge.model.bridge import Bridge
from layerbridge.model.generation import cut_at_stop, possible_stop
from layerbridge.model.splice import splice
from tests import tiny

TEXTS = ["the cat sat on the mat", "one", "ශ්‍රී ලංකාව positive one two three", "Habari ya asubuhi"]
ANSWERS = ["positive", "negative one", "no"]
PAIRS = list(itertools.product(tiny.ENCODERS, tiny.LLMS))


def make(tiny_models, encoder="mt5", llm="llama", seed=0, **parts) -> Bridge:
    parts.setdefault("fusion", "transformer_softmax")
    encoder_options, llm_options = parts.pop("encoder_options", {}), parts.pop("llm_options", {})
    config = BridgeConfig(
        encoder=EncoderConfig(name=tiny_models[encoder], **encoder_options),
        llm=LLMConfig(name=tiny_models[llm], **llm_options),
        **parts,
    )
    bridge = Bridge.build(config, seed=seed)
    with torch.no_grad():  # away from the start, where soft tokens are small and alike
        for name, parameter in bridge.trained_parameters().items():
            if not name.startswith(("encoder.", "llm.")):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return bridge


@pytest.mark.parametrize(("encoder", "llm"), PAIRS)
class TestEveryPair:
    def test_batched_generation_equals_one_by_one(self, tiny_models, encoder, llm):
        bridge = make(tiny_models, encoder, llm)
        together = bridge.generate(TEXTS, max_new_tokens=12)
        assert together == [bridge.generate([text], max_new_tokens=12)[0] for text in TEXTS]
        assert len(set(together)) > 1

    def test_batched_scoring_equals_one_by_one_and_the_loss(self, tiny_models, encoder, llm):
        bridge = make(tiny_models, encoder, llm, prompt=PromptConfig(text="two three"))
        scores = bridge.score(TEXTS, ANSWERS)
        assert scores.shape == (len(TEXTS), len(ANSWERS))
        for row, text in enumerate(TEXTS):
            for column, answer in enumerate(ANSWERS):
                alone = bridge.score([text], [answer])[0, 0]
                torch.testing.assert_close(scores[row, column], alone, atol=1e-4, rtol=1e-4)
                inputs = bridge.processor([text], answers=[answer])
                full = -bridge.loss(inputs) * inputs.labels.shape[1]
                torch.testing.assert_close(scores[row, column], full.detach(), atol=1e-4, rtol=1e-4)

    def test_loss_falls_on_eight_examples(self, tiny_models, encoder, llm):
        bridge = make(tiny_models, encoder, llm).train()
        texts = [f"{a} {b}" for a in ("the cat", "one two") for b in ("mat", "sat", "ශ්‍රී", "three")]
        inputs = bridge.processor(texts, answers=[ANSWERS[i % 3] for i in range(8)])
        optimizer = torch.optim.AdamW(bridge.trained_parameters().values(), lr=1e-2)
        losses = []
        for _ in range(25):
            optimizer.zero_grad()
            loss = bridge.loss(inputs)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]

    def test_only_fusion_projector_and_boundary_train(self, tiny_models, encoder, llm):
        bridge = make(tiny_models, encoder, llm).train()
        bridge.loss(bridge.processor(TEXTS, answers=["positive"] * 4)).backward()
        graded = {name for name, p in bridge.named_parameters() if p.grad is not None}
        assert graded == set(bridge.trained_parameters()) == set(bridge.trained_state())
        assert {name.split(".")[0] for name in graded} == {"fusion", "projector", "boundary"}


def test_loss_equals_the_llms_own_loss_on_unpadded_rows(tiny_models):
    """HF's model, labels and all logits, one row at a time, against one padded batch with the head at answers only."""
    bridge = make(tiny_models, prompt=PromptConfig(text="one two"))
    answers = ["positive", "no", "negative one", "cat"]
    total, count = 0.0, 0
    for text, answer in zip(TEXTS, answers, strict=True):
        inputs = bridge.processor([text], answers=[answer])
        prefix = torch.cat([piece.embeds_BTD for piece in bridge.prefix_pieces(inputs)], dim=1)
        embeds = torch.cat([prefix, bridge.embed(inputs.labels)], dim=1)
        labels = torch.cat([torch.full(prefix.shape[:2], -100), inputs.labels], dim=1)
        loss = bridge.llm(inputs_embeds=embeds, labels=labels).loss
        total += loss.item() * inputs.labels.numel()
        count += inputs.labels.numel()
    batch = bridge.processor(TEXTS, answers=answers)
    assert bridge.loss(batch).item() == pytest.approx(total / count, abs=1e-5)
    assert bridge.loss(batch, num_items=2 * count).item() == pytest.approx(total / count / 2, abs=1e-5)


def test_gradients_of_a_padded_batch_equal_those_of_its_rows(tiny_models):
    bridge = make(tiny_models)
    answers = ["positive", "no", "negative one", "cat"]
    batch = bridge.processor(TEXTS, answers=answers)
    count = int((batch.labels != -100).sum())
    bridge.loss(batch).backward()
    together = {name: p.grad.clone() for name, p in bridge.trained_parameters().items()}
    bridge.zero_grad()
    for text, answer in zip(TEXTS, answers, strict=True):
        bridge.loss(bridge.processor([text], answers=[answer]), num_items=count).backward()
    for name, parameter in bridge.trained_parameters().items():
        torch.testing.assert_close(parameter.grad, together[name], atol=1e-4, rtol=1e-3)


def test_bases_stay_in_eval_mode_and_give_the_same_states(tiny_models):
    bridge = make(tiny_models, llm="gpt2")
    inputs = bridge.processor(TEXTS, answers=["no"] * 4)
    before = bridge.encoder(inputs.source_ids, inputs.source_mask)
    bridge.train()
    assert bridge.fusion.training
    assert not any(m.training for m in bridge.encoder.modules())
    assert not any(m.training for m in bridge.llm.modules())
    after = bridge.encoder(inputs.source_ids, inputs.source_mask)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_llm_reads_bos_soft_tokens_boundary_and_prompt_in_this_order(tiny_models):
    bridge = make(tiny_models, prompt=PromptConfig(text="one"))
    inputs = bridge.processor(["cat"])
    bos, soft, boundary, prompt = bridge.prefix_pieces(inputs)
    assert torch.equal(bos.embeds_BTD[0, 0], bridge.embed(torch.tensor([2]))[0])
    assert soft.embeds_BTD.shape[1] == inputs.source_ids.shape[1]
    assert torch.equal(boundary.embeds_BTD[0, 0], bridge.boundary)
    assert torch.equal(prompt.embeds_BTD[0], bridge.embed(inputs.prompt_ids)[0])
    assert len(make(tiny_models, llm="qwen3").prefix_pieces(inputs)) == 3  # its tokenizer has no bos


def test_boundary_starts_at_zero_as_published(tiny_models):
    config = BridgeConfig(encoder=EncoderConfig(name=tiny_models["mt5"]), llm=LLMConfig(name=tiny_models["llama"]))
    assert not Bridge.build(config).boundary.any()


def test_prompt_variants_reach_the_llm(tiny_models):
    def prompt_text(llm="llama", **options):
        bridge = make(tiny_models, llm=llm, prompt=PromptConfig(**options))
        return bridge.processor.llm_tokenizer.decode(bridge.processor(["cat"]).prompt_ids[0])

    assert prompt_text() == ""
    assert prompt_text(text="one") == "one"
    assert prompt_text(text="one", llm_reads_text=True) == "cat\none"
    assert prompt_text(llm="llama-chat", text="one", style="chat") == "<|user|>one<|end|><|assistant|>"
    with pytest.raises(ConfigError, match="no chat template"):
        prompt_text(text="one", style="chat")


def test_chat_templates_with_the_date_or_another_bos_are_rendered_whole(tiny_models):
    bridge = make(tiny_models, llm="llama-chat", prompt=PromptConfig(text="one", style="chat"))
    tokenizer = bridge.processor.llm_tokenizer

    def rendered(template):
        tokenizer.chat_template = template
        return tokenizer.decode(bridge.processor(["cat"]).prompt_ids[0])

    assert rendered("<s>{{ messages[0]['content'] }}") == "<s>one"  # the template's own turn marker, which bos is too
    dated = "{% if date_string is not defined %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }}"
    assert rendered(dated) == "26 Jul 2024"


def test_answers_over_the_limit_keep_their_end(tiny_models):
    labels = make(tiny_models).processor(["cat"], answers=["one two three four"], max_answer_tokens=3).labels
    assert labels.shape == (1, 3)
    assert labels[0, -1] == 1


def test_per_row_prompts_override_the_configured_one(tiny_models):
    bridge = make(tiny_models, prompt=PromptConfig(text="one"))
    rows = bridge.processor(["cat", "cat"], prompts=["two", "three"])
    assert bridge.processor.llm_tokenizer.batch_decode(rows.prompt_ids)[0].startswith("two")
    scores = bridge.score(["cat", "cat"], ANSWERS, prompts=["two", "three"])
    assert not torch.allclose(scores[0], scores[1])


def test_many_answers_are_scored_in_several_passes_with_the_same_result(tiny_models, monkeypatch):
    bridge = make(tiny_models)
    whole = bridge.score(TEXTS, ANSWERS)
    monkeypatch.setattr(scoring, "MAX_SCORED_LOGITS", 1)
    torch.testing.assert_close(bridge.score(TEXTS, ANSWERS), whole, atol=1e-5, rtol=1e-5)


def test_scores_are_log_probabilities(tiny_models):
    """Over all one-token answers and their ends, probabilities cannot exceed one."""
    bridge = make(tiny_models)
    words = sorted({"cat", "one", "two", "no", "positive"})
    assert bridge.score(["cat"], words).exp().sum() < 1


def test_match_rms_gives_soft_tokens_the_scale_of_the_llms_embeddings(tiny_models):
    for llm in ("llama", "gemma3"):
        bridge = make(tiny_models, llm=llm, projector=ProjectorConfig(match_rms=True))
        embeds = bridge.embed(torch.arange(tiny.VOCABULARY))
        soft = bridge.prefix_pieces(bridge.processor(["cat"]))[1].embeds_BTD
        expected = embeds.square().mean().sqrt().expand(soft.shape[1])
        torch.testing.assert_close(soft[0].square().mean(-1).sqrt(), expected, rtol=1e-3, atol=1e-3)


def test_mlp_projector_trains(tiny_models):
    bridge = make(tiny_models, projector=ProjectorConfig(name="mlp", hidden_width=7))
    assert bridge.trained_parameters()["projector.layers.0.weight"].shape == (7, tiny.WIDTH)


def test_bfloat16_bases_under_float32_bridge(tiny_models):
    options = {"dtype": "bfloat16"}
    bridge = make(tiny_models, encoder_options=options, llm_options=options)
    assert {p.dtype for p in bridge.trained_parameters().values()} == {torch.float32}
    assert torch.isfinite(bridge.score(TEXTS, ANSWERS)).all()
    bridge.loss(bridge.processor(TEXTS, answers=["no"] * 4)).backward()


@pytest.mark.parametrize("side", ["encoder", "llm"])
def test_lora_adapters_train_beside_the_bridge(tiny_models, side):
    bridge = make(tiny_models, **{f"{side}_options": {"lora": LoraConfig(rank=2)}})
    bridge.loss(bridge.processor(TEXTS, answers=["no"] * 4)).backward()
    adapters = {name for name in bridge.trained_parameters() if "lora_" in name}
    assert adapters
    assert all(name.startswith(f"{side}.") for name in adapters)
    assert any(bridge.get_parameter(name).grad.abs().sum() > 0 for name in adapters)


@pytest.mark.parametrize("options", [{}, {"lora": LoraConfig(rank=2)}])
def test_encoder_biases_train_when_asked_with_adapters_or_without(tiny_models, options):
    bridge = make(tiny_models, encoder="xlmr", encoder_options={"train_biases": True, **options})
    bridge.loss(bridge.processor(TEXTS, answers=["no"] * 4)).backward()
    biases = [name for name in bridge.trained_parameters() if name.startswith("encoder.") and "lora_" not in name]
    assert biases
    assert all(name.endswith("bias") for name in biases)
    assert any(bridge.get_parameter(name).grad is not None for name in biases)


def test_every_trained_parameter_is_float32_and_moves_at_the_published_rate(tiny_models):
    """In bfloat16 a step of 3e-5 would round to nothing."""
    options = {"dtype": "bfloat16", "lora": LoraConfig(rank=2)}
    bridge = make(tiny_models, encoder_options=options, llm_options=options).train()
    assert {p.dtype for p in bridge.trained_parameters().values()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in bridge.trained_parameters().items()}
    optimizer = torch.optim.AdamW(bridge.trained_parameters().values(), lr=3e-5)
    for _ in range(2):  # an adapter's A moves once its B is no longer zero
        optimizer.zero_grad()
        bridge.loss(bridge.processor(TEXTS, answers=["no"] * 4)).backward()
        optimizer.step()
    for name, parameter in bridge.trained_parameters().items():
        assert not torch.equal(parameter, before[name]), name
    with pytest.raises(ConfigError, match=r"Set encoder\.dtype=float32"):
        make(tiny_models, encoder="xlmr", encoder_options={"dtype": "bfloat16", "train_biases": True})


def test_quantisation_options_reach_transformers(tiny_models, monkeypatch):
    from transformers import AutoModelForCausalLM

    seen = {}
    original = AutoModelForCausalLM.from_pretrained

    def spy(path, **arguments):
        seen.update(quantization=arguments.pop("quantization_config", None), device=arguments.pop("device_map", None))
        return original(path, **arguments)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    make(tiny_models, llm_options={"quantization": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    assert type(seen["quantization"]).__name__ == "BitsAndBytesConfig"
    assert seen["quantization"].load_in_4bit
    assert seen["device"] == {"": torch.device("cpu")}
    with pytest.raises(ConfigError, match=r"llm\.quantization is not one that transformers knows"):
        make(tiny_models, llm_options={"quantization": {"quant_method": "nonsense"}})


# --- generation ------------------------------------------------------------------------------------------------------


def test_greedy_generation_equals_stepwise_argmax(tiny_models):
    bridge = make(tiny_models)
    inputs = bridge.processor([TEXTS[0]])
    embeds = splice(bridge.prefix_pieces(inputs)).embeds_BTD
    ids = []
    with torch.no_grad():
        for _ in range(8):
            token = bridge.llm(inputs_embeds=embeds).logits[0, -1].argmax()
            if token == 1:
                break
            ids.append(int(token))
            embeds = torch.cat([embeds, bridge.embed(token.view(1, 1))], dim=1)
    expected = bridge.processor.llm_tokenizer.decode(ids, skip_special_tokens=True)
    assert bridge.generate([TEXTS[0]], max_new_tokens=8) == [expected]


def test_the_llms_own_defaults_do_not_leak_into_greedy(tiny_models, tmp_path):
    bridge = make(tiny_models)
    greedy = bridge.generate(TEXTS, max_new_tokens=6)
    folder = shutil.copytree(tiny_models["llama"], tmp_path / "llama")
    defaults = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "no_repeat_ngram_size": 1}
    (folder / "generation_config.json").write_text(json.dumps(defaults | {"eos_token_id": [1, 3]}))
    again = make(tiny_models | {"llama": str(folder)})
    assert again.llm.generation_config.eos_token_id == [1, 3]
    assert again.generate(TEXTS, max_new_tokens=6) == greedy


def test_sampling_follows_its_seed_and_leaves_the_global_state_alone(tiny_models):
    bridge = make(tiny_models)
    state = torch.random.get_rng_state()
    first = bridge.generate(TEXTS, temperature=1.5, seed=3, max_new_tokens=8)
    assert bridge.generate(TEXTS, temperature=1.5, seed=3, max_new_tokens=8) == first
    assert bridge.generate(TEXTS, temperature=1.5, seed=4, max_new_tokens=8) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_beams_find_an_answer_at_least_as_probable_as_greedy(tiny_models):
    bridge = make(tiny_models)
    greedy, beams = (bridge.generate([TEXTS[0]], num_beams=n, max_new_tokens=3)[0] for n in (1, 4))
    assert isinstance(beams, str)
    assert isinstance(greedy, str)


@pytest.mark.parametrize("stop", [(), ("e",), ("zzz",)])
def test_streamed_pieces_join_to_the_whole_answer(tiny_models, stop):
    bridge = make(tiny_models)
    for text in TEXTS:
        whole = bridge.generate([text], max_new_tokens=16, stop=stop)[0]
        assert "".join(bridge.stream(text, max_new_tokens=16, stop=stop)) == whole


def test_a_failure_while_streaming_reaches_the_caller(tiny_models):
    bridge = make(tiny_models, llm="gpt2")
    with pytest.raises(DataError, match="takes 128"):
        list(bridge.stream("cat", max_new_tokens=500))


def test_dropping_a_stream_ends_it(tiny_models):
    stream = make(tiny_models).stream(TEXTS[0], max_new_tokens=400)
    next(stream)
    stream.close()


def test_an_answer_ends_before_the_first_stop_string():
    assert cut_at_stop("one two three", ["three", "two"]) == "one "
    assert cut_at_stop("one", ["x"]) == "one"
    assert possible_stop("one tw", ["two", "weird"]) == 2
    assert possible_stop("one", ["two"]) == 0


def test_impossible_generation_options_are_refused(tiny_models):
    bridge = make(tiny_models)
    for options, message in (
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"stop": [""]}, "stop string is empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            bridge.generate(["cat"], **options)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_an_answer_that_tokenises_to_nothing_is_refused(tiny_models):
    bridge = make(tiny_models)
    with pytest.raises(DataError, match=r"Answer '' \(number 2 of 2\) tokenises to nothing"):
        bridge.score(["cat"], ["no", ""])
    with pytest.raises(DataError, match="tokenises to nothing"):
        bridge.processor(["cat"], answers=[""])


def test_long_texts_are_cut_and_counted(tiny_models):
    bridge = make(tiny_models)
    long = "cat " * 100
    with pytest.warns(UserWarning, match="longer than 20 encoder tokens are cut there"):
        inputs = bridge.processor([long, "cat"], max_source_tokens=20)
    assert inputs.source_ids.shape[1] == 20
    assert inputs.source_ids[0, -1] == 1  # the encoder's own end token stays
    assert bridge.count_source_tokens([long])[0] > 20


def test_the_encoders_position_limit_holds_even_if_more_is_asked(tiny_models):
    bridge = make(tiny_models, encoder="xlmr")
    assert bridge.source_limit(512) == 129
    with pytest.warns(UserWarning, match="longer than 129 encoder tokens"):
        assert bridge.generate(["cat " * 300], max_source_tokens=512, max_new_tokens=2)


def test_a_prefix_beyond_the_llms_positions_is_refused_with_both_numbers(tiny_models):
    bridge = make(tiny_models, llm="gpt2")
    with pytest.raises(DataError, match=r"read \d+ positions and takes 128"):
        bridge.generate(["cat " * 300], max_source_tokens=200)


def test_no_texts_and_uneven_lists_are_refused(tiny_models):
    bridge = make(tiny_models)
    with pytest.raises(DataError, match="no texts"):
        bridge.generate([])
    with pytest.raises(DataError, match="Got 1 texts and 2 answers"):
        bridge.processor(["cat"], answers=["a", "b"])
    with pytest.raises(DataError, match="no answers"):
        bridge.score(["cat"], [])


def test_render_uses_the_prompt_it_was_trained_with(tiny_models):
    bridge = make(tiny_models)
    assert bridge.render("plain") == "plain"
    bridge.trained_on = {"encoder_prompt": "Review: {text} Label: "}
    assert bridge.render("good") == bridge.render({"text": "good"}) == "Review: good Label: "
    bridge.trained_on = {"encoder_prompt": "{premise} / {hypothesis}"}
    with pytest.raises(DataError, match=r"one text, but the prompt has 2 fields \(premise, hypothesis\)"):
        bridge.render("good")
    with pytest.raises(DataError, match="no field 'hypothesis' among 'premise'"):
        bridge.render({"premise": "x"})
    bridge.trained_on = {"encoder_prompt": "{text:>2000000}"}  # a checkpoint is somebody else's file
    with pytest.raises(ConfigError, match="wanted a plain column name"):
        bridge.render("good")
