"""The embedded pair: what the package promises of the models it carries."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

EMBEDDED = Path(__file__).resolve().parents[1] / "src" / "layerbridge" / "embedded"
ENCODER, LLM = EMBEDDED / "encoder", EMBEDDED / "llm"
MAX_BYTES = 40_000_000
NUM_LAYERS = 8

# One sentence in each of the 27 languages: "Tomorrow the children will go to school by bus."
SENTENCES = {
    "en": "Tomorrow the children will go to school by bus.",
    "ar": "غدا سيذهب الأطفال إلى المدرسة بالحافلة.",
    "bg": "Утре децата ще отидат на училище с автобус.",
    "bn": "আগামীকাল শিশুরা বাসে করে স্কুলে যাবে।",
    "de": "Morgen fahren die Kinder mit dem Bus zur Schule.",
    "el": "Αύριο τα παιδιά θα πάνε στο σχολείο με το λεωφορείο.",
    "es": "Mañana los niños irán a la escuela en autobús.",
    "fr": "Demain, les enfants iront à l'école en bus.",
    "gu": "આવતીકાલે બાળકો બસમાં શાળાએ જશે.",
    "hi": "कल बच्चे बस से स्कूल जाएंगे।",
    "id": "Besok anak-anak akan pergi ke sekolah naik bus.",
    "ja": "明日、子供たちはバスで学校に行きます。",
    "kn": "ನಾಳೆ ಮಕ್ಕಳು ಬಸ್ಸಿನಲ್ಲಿ ಶಾಲೆಗೆ ಹೋಗುತ್ತಾರೆ.",
    "ml": "നാളെ കുട്ടികൾ ബസിൽ സ്കൂളിൽ പോകും.",
    "mr": "उद्या मुले बसने शाळेत जातील.",
    "ne": "भोलि बच्चाहरू बसमा विद्यालय जानेछन्।",
    "pa": "ਕੱਲ੍ਹ ਬੱਚੇ ਬੱਸ ਰਾਹੀਂ ਸਕੂਲ ਜਾਣਗੇ।",
    "ru": "Завтра дети поедут в школу на автобусе.",
    "si": "හෙට ළමයි බසයෙන් පාසලට යනවා.",
    "sw": "Kesho watoto wataenda shuleni kwa basi.",
    "ta": "நாளை குழந்தைகள் பேருந்தில் பள்ளிக்குச் செல்வார்கள்.",
    "te": "రేపు పిల్లలు బస్సులో పాఠశాలకు వెళ్తారు.",
    "th": "พรุ่งนี้เด็ก ๆ จะไปโรงเรียนโดยรถบัส",
    "tr": "Yarın çocuklar okula otobüsle gidecek.",
    "ur": "کل بچے بس سے اسکول جائیں گے۔",
    "vi": "Ngày mai bọn trẻ sẽ đi học bằng xe buýt.",
    "zh": "明天孩子们将乘公共汽车去学校。",
}

TRANSLATIONS = {
    "en": [
        "The team won the football match.",
        "The doctor gave the patient new medicine.",
        "The government lost the election in parliament.",
        "The computer is connected to the internet.",
        "The river flows to the sea.",
    ],
    "de": [
        "Die Mannschaft gewann das Fußballspiel.",
        "Der Arzt gab dem Patienten ein neues Medikament.",
        "Die Regierung verlor die Wahl im Parlament.",
        "Der Computer ist mit dem Internet verbunden.",
        "Der Fluss fließt ins Meer.",
    ],
    "es": [
        "El equipo ganó el partido de fútbol.",
        "El médico le dio al paciente un nuevo medicamento.",
        "El gobierno perdió las elecciones en el parlamento.",
        "La computadora está conectada a internet.",
        "El río fluye hacia el mar.",
    ],
    "hi": [
        "टीम ने फुटबॉल मैच जीत लिया।",
        "डॉक्टर ने रोगी को नई दवा दी।",
        "सरकार संसद में चुनाव हार गई।",
        "कंप्यूटर इंटरनेट से जुड़ा है।",
        "नदी समुद्र की ओर बहती है।",
    ],
    "zh": [
        "球队赢得了足球比赛。",
        "医生给病人开了新药。",
        "政府在议会选举中失败了。",
        "计算机已连接到互联网。",
        "河流流向大海。",
    ],
}


@pytest.fixture(scope="module")
def encoder():
    model = transformers.AutoModelForTextEncoding.from_pretrained(ENCODER, dtype=torch.float32, local_files_only=True)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(ENCODER, local_files_only=True)


@pytest.fixture(scope="module")
def llm():
    model = transformers.AutoModelForCausalLM.from_pretrained(LLM, dtype=torch.float32, local_files_only=True)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(LLM, local_files_only=True)


def test_both_folders_together_weigh_at_most_40_megabytes():
    total = sum(path.stat().st_size for folder in (ENCODER, LLM) for path in folder.rglob("*") if path.is_file())
    assert total <= MAX_BYTES, f"{total:,} bytes in {ENCODER.name}/ and {LLM.name}/, at most {MAX_BYTES:,}"


@pytest.mark.parametrize("folder", [ENCODER, LLM], ids=lambda path: path.name)
def test_each_folder_is_an_ordinary_one_with_a_card(folder: Path):
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert "auto_map" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "CC BY-SA 4.0" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_models_load_offline_in_either_type(dtype):
    for auto, folder in ((transformers.AutoModelForTextEncoding, ENCODER), (transformers.AutoModelForCausalLM, LLM)):
        model, report = auto.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
        assert model.dtype == dtype
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_the_encoder_is_mt5_of_eight_layers_with_nine_states(encoder):
    model, tokenizer = encoder
    assert model.config.model_type in ("mt5", "t5")
    assert model.config.num_layers == NUM_LAYERS
    states = model(**tokenizer("one sentence", return_tensors="pt"), output_hidden_states=True).hidden_states
    assert len(states) == NUM_LAYERS + 1
    assert {state.shape[-1] for state in states} == {model.config.d_model}


@pytest.mark.parametrize("lang", SENTENCES)
def test_the_encoder_tokenizer_returns_each_language_unchanged(encoder, lang: str):
    _, tokenizer = encoder
    text = unicodedata.normalize("NFKC", SENTENCES[lang])
    ids = tokenizer(text).input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.unk_token_id) == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) < len(text) * 0.95 + 2, "more than one token a character"


def test_the_encoder_tokenizer_pads_on_the_right(encoder):
    _, tokenizer = encoder
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token_id == 0
    ids = tokenizer(["a", "a much longer sentence"], padding=True).input_ids
    assert ids[0][-1] == tokenizer.pad_token_id
    assert len(ids[0]) == len(ids[1])


def test_the_llm_tokenizer_encodes_any_text_and_adds_only_bos(llm):
    _, tokenizer = llm
    text = "Café 日本 ශ්‍රී \n\tend\x00."
    plain = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(plain) == text
    assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *plain]
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


@torch.inference_mode()
def test_encoder_states_of_a_padded_batch_equal_those_one_by_one(encoder):
    model, tokenizer = encoder
    texts = list(SENTENCES.values())
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    together = model(**batch, output_hidden_states=True).hidden_states
    for row, text in enumerate(texts):
        alone = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        for state_BSE, state_1SE in zip(together, alone, strict=True):
            torch.testing.assert_close(state_BSE[row, : state_1SE.shape[1]], state_1SE[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_llm_states_of_a_left_padded_batch_equal_those_one_by_one(llm):
    model, tokenizer = llm
    texts = ["Once upon a time", "The largest city of the country is known for its"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    together = model(**batch, position_ids=positions, output_hidden_states=True).hidden_states
    for row, text in enumerate(texts):
        alone = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        for state_BSE, state_1SE in zip(together, alone, strict=True):
            torch.testing.assert_close(state_BSE[row, -state_1SE.shape[1] :], state_1SE[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_llm_generates_and_defines_its_end(llm):
    model, tokenizer = llm
    assert model.config.bos_token_id == tokenizer.bos_token_id
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.tie_word_embeddings
    ids = tokenizer("The town is located in", return_tensors="pt").input_ids
    assert bool(model(ids).logits.isfinite().all())
    new = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True).strip()


@torch.inference_mode()
def test_the_llm_predicts_english_far_better_than_a_uniform_guess(llm):
    model, tokenizer = llm
    text = "He was born in the city and went to school there. She is the daughter of a teacher."
    ids = tokenizer(text, return_tensors="pt").input_ids
    loss = float(model(ids, labels=ids).loss)
    assert loss < 5.0, f"loss {loss:.2f}; a uniform guess over {len(tokenizer)} tokens has 8.3"


@torch.inference_mode()
def test_translations_are_closer_than_other_sentences(encoder):
    model, tokenizer = encoder

    def pool(texts: list[str]):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        mask_BS1 = inputs.attention_mask[..., None]
        mean_BE = (model(**inputs).last_hidden_state * mask_BS1).sum(1) / mask_BS1.sum(1)
        return torch.nn.functional.normalize(mean_BE, dim=-1)

    english_BE = pool(TRANSLATIONS["en"])
    same, other, first = [], [], []
    for lang in ("de", "es", "hi", "zh"):
        cosines_BB = pool(TRANSLATIONS[lang]) @ english_BE.T
        is_pair_BB = torch.eye(len(english_BE), dtype=torch.bool)
        same.append(cosines_BB[is_pair_BB])
        other.append(cosines_BB[~is_pair_BB])
        first.append((cosines_BB.argmax(1) == torch.arange(len(english_BE))).float())
    assert torch.cat(same).mean() > torch.cat(other).mean() + 0.1
    assert torch.cat(first).mean() > 0.5, "chance is 0.2"
