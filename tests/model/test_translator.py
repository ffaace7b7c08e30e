"""Translation models of three families, tiny and random: tags are right, and what comes out is transformers' own."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    NllbTokenizer,
)

from layerbridge.config import TranslatorConfig
from layerbridge.errors import ConfigError, ModelError
from layerbridge.model.translator import Translator
from tests import tiny

TEXTS = ["the cat sat on the mat", "one", "positive one two three", "habari ya asubuhi"]
SHAPE = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def translators(tmp_path_factory):
    """Folders of tiny translation models, by kind."""
    root = tmp_path_factory.mktemp("translators")
    pieces = sentencepieces(root)
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for letter in " ▁abcdefghijklmnopqrstuvwxyz":
        vocabulary.setdefault(letter, len(vocabulary))
    tags = ["eng_Latn", "sin_Sinh", "swh_Latn"]
    nllb = NllbTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=tags)
    marian = MarianTokenizer(source_spm=pieces["model"], target_spm=pieces["model"], vocab=pieces["vocabulary"])
    m2m100 = M2M100Tokenizer(pieces["vocabulary"], pieces["model"])
    size = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    made = {
        "nllb": (nllb, M2M100ForConditionalGeneration, M2M100Config(vocab_size=len(nllb), **SHAPE, **size)),
        "m2m100": (m2m100, M2M100ForConditionalGeneration, m2m100_config(m2m100, **size)),
        "marian": (marian, MarianMTModel, MarianConfig(vocab_size=len(marian), **SHAPE, **marian_size())),
        "mt5": (tiny.tokenizer(ends_texts=True), MT5ForConditionalGeneration, mt5_config()),
    }
    for kind, (tokenizer, model_class, config) in made.items():
        torch.manual_seed(3)
        model = model_class(config)
        tiny._spread(model)
        model.save_pretrained(root / kind)
        tokenizer.save_pretrained(root / kind)
    return {kind: str(root / kind) for kind in made}


def sentencepieces(root):
    """Train a SentencePiece model, as Marian's and M2M100's tokenizers are made of."""
    import sentencepiece

    (root / "corpus").write_text("\n".join(TEXTS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(root / "corpus"),
        model_prefix=str(root / "pieces"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(root / "pieces.model"))
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for index in range(processor.get_piece_size()):
        vocabulary.setdefault(processor.id_to_piece(index), len(vocabulary))
    (root / "vocabulary.json").write_text(json.dumps(vocabulary))
    return {"model": str(root / "pieces.model"), "vocabulary": str(root / "vocabulary.json")}


def m2m100_config(tokenizer, **size):
    """Its language tokens stand after the vocabulary, and eight unused ones after these."""
    return M2M100Config(vocab_size=max(tokenizer.lang_code_to_id.values()) + 9, **SHAPE, **size)


def marian_size():
    return {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": None}


def mt5_config():
    return MT5Config(
        vocab_size=tiny.VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def make(translators, kind, **options) -> Translator:
    options.setdefault("max_new_tokens", 10)
    return Translator.build(TranslatorConfig(name=translators[kind], **options), device="cpu")


def own_translation(folder, text, *, source=None, target_id=None, **options):
    """What transformers makes of one text alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    if source is not None:
        tokenizer.src_lang = source
    forced = {} if target_id is None else {"forced_bos_token_id": target_id}
    out = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=10, **forced, **options)
    return tokenizer.decode(out[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", ["nllb", "m2m100", "marian", "mt5"])
def test_translations_are_those_of_transformers_one_by_one(translators, kind, num_beams):
    translator = make(translators, kind, num_beams=num_beams, batch_size=3)
    tags = {"nllb": ("swh_Latn", "eng_Latn"), "m2m100": ("sw", "en")}.get(kind)
    target = None
    if tags:
        tokenizer = AutoTokenizer.from_pretrained(translators[kind])
        target = tokenizer.get_lang_id("en") if kind == "m2m100" else tokenizer.convert_tokens_to_ids("eng_Latn")
    expected = [
        own_translation(
            translators[kind], text, source=tags and tags[0], target_id=target, num_beams=num_beams, do_sample=False
        )
        for text in TEXTS
    ]
    assert [found.text for found in translator.translate(TEXTS, "sw")] == expected
    assert any(expected)


def test_the_first_token_written_is_the_english_tag(translators, monkeypatch):
    translator = make(translators, "nllb")
    seen = []
    decode = translator.tokenizer.batch_decode
    monkeypatch.setattr(
        translator.tokenizer, "batch_decode", lambda ids, **options: seen.append(ids) or decode(ids, **options)
    )
    translator.translate(TEXTS[:1], "si")
    assert seen[0][0, 1] == translator.tokenizer.convert_tokens_to_ids("eng_Latn")


def test_the_source_tag_changes_with_the_language(translators):
    translator = make(translators, "nllb")
    assert (translator.tag("si"), translator.tag("sw"), translator.target) == ("sin_Sinh", "swh_Latn", "eng_Latn")
    first = translator.translate(TEXTS, "si")
    assert translator.tokenizer.src_lang == "sin_Sinh"
    translator.translate(TEXTS, "sw")
    assert translator.tokenizer.src_lang == "swh_Latn"
    assert translator.translate(TEXTS, "si") == first


def test_tags_may_be_given_and_those_of_m2m100_are_its_codes(translators):
    assert make(translators, "m2m100").tag("si") == "si"
    assert make(translators, "nllb", source_languages={"xx": "sin_Sinh"}).tag("xx") == "sin_Sinh"
    assert make(translators, "nllb", target_language="swh_Latn").target == "swh_Latn"
    assert make(translators, "mt5").tag("si") is None


def test_english_and_empty_texts_come_back_as_they_are(translators):
    translator = make(translators, "nllb")
    assert [found.text for found in translator.translate(TEXTS, "en")] == TEXTS
    assert [found.text for found in translator.translate(["", "  "], "si")] == ["", "  "]
    assert translator.translate([], "si") == []


def test_what_is_cut_is_marked(translators):
    long, short = "the cat sat on the mat", "one"
    translator = make(translators, "nllb", max_source_tokens=8)
    (cut, _) = translator.translate([long, short], "si")
    assert cut.cut
    assert make(translators, "nllb", max_new_tokens=1).translate([short], "si")[0].cut  # the English tag, no end
    ended = make(translators, "nllb", max_source_tokens=60)
    ended.model.generation_config.eos_token_id = list(range(len(ended.tokenizer)))  # any token ends it
    assert not ended.translate([short], "si")[0].cut
    assert ended.translate([long * 5], "si")[0].cut


def test_the_models_positions_limit_the_source(translators):
    found = make(translators, "nllb").translate(["cat " * 60], "si")  # 64 positions
    assert found[0].cut


def test_a_prefix_stands_before_every_text(translators):
    with_prefix = make(translators, "mt5", prefix="one two ").translate(["three"], "si")
    assert with_prefix[0].text == own_translation(translators["mt5"], "one two three", do_sample=False)


def test_the_models_own_sampling_does_not_leak_in(translators, tmp_path):
    expected = make(translators, "marian").translate(TEXTS, "de")
    folder = shutil.copytree(translators["marian"], tmp_path / "marian")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True, "num_beams": 4, "temperature": 9.0}))
    assert make({"marian": str(folder)}, "marian").translate(TEXTS, "de") == expected


def test_languages_and_models_that_do_not_fit_are_refused(translators, tiny_models):
    translator = make(translators, "nllb")
    with pytest.raises(ConfigError, match=r"none of the tags that Tamil \(ta\) could have \(tam_Taml, ta\).*3 tags"):
        translator.translate(["one"], "ta")
    with pytest.raises(ConfigError, match=r"Unknown language tag .* 'sin_Sin'. Did you mean 'sin_Sinh'"):
        make(translators, "nllb", source_languages={"si": "sin_Sin"}).translate(["one"], "si")
    with pytest.raises(ConfigError, match="Unknown language tag"):
        make(translators, "nllb", target_language="en")
    with pytest.raises(ConfigError, match="has none. Drop them"):
        make(translators, "marian", target_language="eng_Latn")
    with pytest.raises(ModelError, match="Cannot load translator"):
        make({"llama": tiny_models["llama"]}, "llama")
