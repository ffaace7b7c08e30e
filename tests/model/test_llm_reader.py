"""The LLM alone: what it reads is the text itself, and its answers are those of transformers on the same tokens."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerbridge.config import LLMConfig, LoraConfig, PromptConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.llm_reader import ROOM_FOR_ANSWERS, LLMReader
from tests import tiny
from tests.model.test_bridge import ANSWERS, TEXTS


def make(tiny_models, llm="llama", **prompt) -> LLMReader:
    return LLMReader.build(LLMConfig(name=tiny_models[llm]), PromptConfig(**prompt), device="cpu")


def read_by(reader, text, **options):
    inputs = reader.processor([text], **options)
    return reader.processor.llm_tokenizer.decode(inputs.prompt_ids[0])


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_scores_are_those_of_transformers_on_the_same_tokens(tiny_models, llm):
    """Each text and answer alone, as token ids through the model's own forward."""
    reader = make(tiny_models, llm, text="two three")
    model = AutoModelForCausalLM.from_pretrained(tiny_models[llm])
    tokenizer = AutoTokenizer.from_pretrained(tiny_models[llm])
    scores = reader.score(TEXTS, ANSWERS)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for row, text in enumerate(TEXTS):
        prefix = bos + tokenizer(f"{text}\ntwo three", add_special_tokens=False)["input_ids"]
        for column, answer in enumerate(ANSWERS):
            ids = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            with torch.no_grad():
                log_probs = model(torch.tensor([prefix + ids])).logits[0].log_softmax(-1)
            alone = sum(log_probs[len(prefix) + step - 1, token] for step, token in enumerate(ids))
            torch.testing.assert_close(scores[row, column], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_greedy_text_is_that_of_transformers_on_the_same_tokens(tiny_models, llm):
    reader = make(tiny_models, llm)
    model = AutoModelForCausalLM.from_pretrained(tiny_models[llm])
    tokenizer = AutoTokenizer.from_pretrained(tiny_models[llm])
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for text, found in zip(TEXTS, reader.generate(TEXTS, max_new_tokens=8), strict=True):
        ids = torch.tensor([bos + tokenizer(text, add_special_tokens=False)["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert found == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_one_pass_answers_as_score_and_generate_do_apart(tiny_models, llm):
    reader = make(tiny_models, llm, text="one")
    scores, texts = reader.answer(TEXTS, ANSWERS, max_new_tokens=8)
    torch.testing.assert_close(scores, reader.score(TEXTS, ANSWERS), atol=1e-4, rtol=1e-4)
    assert texts == reader.generate(TEXTS, max_new_tokens=8)


def test_the_llm_reads_text_and_prompt_without_the_space_before_the_answer(tiny_models):
    assert read_by(make(tiny_models), "Text: cat Topic: ") == "Text: cat Topic:"
    assert read_by(make(tiny_models, text="one "), "cat") == "cat\none"
    assert read_by(make(tiny_models, text="one"), "cat", prompts=["two"]) == "cat\ntwo"
    chat = make(tiny_models, "llama-chat", style="chat")
    assert read_by(chat, "Topic: ") == "<|user|>Topic: <|end|><|assistant|>"


def test_answers_stand_after_a_space_and_in_a_chat_without(tiny_models):
    plain, chat = make(tiny_models), make(tiny_models, "llama-chat", style="chat")
    decode = plain.processor.llm_tokenizer.decode
    assert [decode(ids) for ids in plain.processor.answer_ids(["one", "no"])] == [" one</s>", " no</s>"]
    assert [decode(ids) for ids in chat.processor.answer_ids(["one", "no"])] == ["one</s>", "no</s>"]


def test_long_texts_are_cut_at_llm_tokens_and_counted(tiny_models):
    reader = make(tiny_models, text="two")
    text = "the cat sat on the mat " * 5
    (count,) = reader.count_source_tokens([text])
    assert count == len(reader.processor.llm_tokenizer(text, add_special_tokens=False)["input_ids"])
    with pytest.warns(UserWarning, match="longer than 4 LLM tokens"):
        inputs = reader.processor([text], max_source_tokens=4)
    assert inputs.source_ids.shape[1] == 4
    assert reader.processor.llm_tokenizer.decode(inputs.prompt_ids[0]).endswith("two")


def test_a_cut_inside_a_character_adds_no_tokens(tiny_models):
    reader = make(tiny_models)
    text = "ගඟ" * 20
    for limit in range(1, 12):
        with pytest.warns(UserWarning, match="are cut there"):
            assert reader.processor([text], max_source_tokens=limit).source_ids.shape[1] <= max(limit, 3)


def test_the_llms_positions_leave_room_for_answers(tiny_models):
    reader = make(tiny_models, "gpt2", text="two")  # 128 positions
    limit = reader.source_limit(1000)
    assert limit < 128 - ROOM_FOR_ANSWERS
    with pytest.warns(UserWarning, match=f"longer than {limit} LLM tokens"):
        reader.answer(["cat " * 300], ANSWERS, max_source_tokens=1000, max_new_tokens=ROOM_FOR_ANSWERS)
    assert reader.source_limit(5) == 5


def test_the_fingerprint_follows_llm_and_prompt(tiny_models):
    prints = {
        make(tiny_models).fingerprint(),
        make(tiny_models, text="one").fingerprint(),
        make(tiny_models, "qwen3").fingerprint(),
    }
    assert len(prints) == 3
    assert make(tiny_models).fingerprint() in prints
    assert set(make(tiny_models).bases) == {"llm"}


def test_what_the_llm_alone_cannot_do_is_refused(tiny_models):
    reader = make(tiny_models)
    with pytest.raises(DataError, match="no texts"):
        reader.score([], ANSWERS)
    with pytest.raises(DataError, match=r"Text 2 of 2 \('  '\) gives the LLM nothing"):
        reader.score(["cat", "  "], ANSWERS)
    with pytest.raises(DataError, match="2 texts and 1 prompts"):
        reader.score(["cat", "cat"], ANSWERS, prompts=["one"])
    with pytest.raises(DataError, match="tokenises to nothing"):
        reader.score(["cat"], [""])
    with pytest.raises(DataError, match="takes no answers to learn from"):
        reader.processor(["cat"], answers=["one"])
    with pytest.raises(ConfigError, match="no chat template"):
        make(tiny_models, style="chat")
    with pytest.raises(ConfigError, match="llm.lora is set"):
        LLMReader.build(LLMConfig(name=tiny_models["llama"], lora=LoraConfig()), PromptConfig())
