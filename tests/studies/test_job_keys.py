"""Keys of jobs: what was done before an option came stays done, and a file of texts is what it says."""

from types import SimpleNamespace

import pytest

from layerbridge import results
from layerbridge.config import Recipe, build_config
from layerbridge.results import Versions
from layerbridge.studies import job_keys as module
from layerbridge.studies.inputs import InputCache
from layerbridge.studies.job_keys import job_keys
from layerbridge.studies.study import Job

VERSIONS = Versions(layerbridge="0.1.0", torch="2", transformers="5")

FIRST = {  # of a recipe with these fusions, in the three versions that wrote keys with every option in them
    "last_layer": (
        "536d07460b097c9db1c3ea8c8b14fd76082eacbbf05980edf7ec71f576f16afd",
        "d0672913a41ac68e7d94ad3ad7bcafa6f4476fceb90aa4131428063eeaa880d1",
        "9a3f42f669ee7c14aaaf29c645a4b5cd668bc78fa3c4b42168fcbd32ed5c5f56",
    ),
    "global_softmax": (
        "595ccf36ce23157e70501e4d399e37dfd6d27ee4c0661af680aa9236d2181ab2",
        "562098fc4d9116d3b8f9bb3fc619c1d10c4fefb14bd8d87ded63291cb6b2fc62",
        "45f94102d80ff04a31b434b9a642e1b9b43fe9f6b125d4221a675dccb92ccba5",
    ),
    "transformer_softmax": (
        "039a15a2b935ac2df6f2473c23a0db0dc783b6a0b765ab953ea529ac9e3fef60",
        "1ce9a15e1e61f244f18ab32d951237d7f7bc9f00358ec855761c04e4bdcf0448",
        "cdc4e10e74494625deff63ae8b48d80e9a5edf4d05c4a137ec4d8450471d9601",
    ),
}


class FewInputs(InputCache):
    """Rows that need no file."""

    def of(self, recipe):
        split = SimpleNamespace(sha256="a" * 64)
        return SimpleNamespace(train=split, dev=split, splits={"si": split})


@pytest.fixture(autouse=True)
def same_versions(monkeypatch):
    monkeypatch.setattr(module, "installed_versions", lambda: VERSIONS)


def job(**keys) -> Job:
    data = {"name": "x", "encoder": "e", "llm": "l", "task": "sib200", "fusion": "last_layer", **keys}
    recipe = build_config(Recipe, data, where="test")
    return Job(kind="bridge", task="sib200", name="x", recipe=recipe)


def keys(**changes):
    return job_keys(job(**changes), FewInputs())


@pytest.mark.parametrize("fusion", FIRST)
def test_the_keys_of_finished_jobs_stay_what_they_are(fusion):
    """Pinned: if an option was added and this fails, its default is missing in the tables of `layerbridge.results`."""
    assert keys(fusion=fusion) == FIRST[fusion]


def test_an_option_that_comes_later_alters_no_key_at_its_default(monkeypatch):
    before, other = keys(), keys(training={"epochs": 7})
    monkeypatch.setitem(results._LATER["training"], "epochs", 3.0)  # as if recipes had just gained it
    without = keys()
    assert not set(without) & set(before)
    assert keys(training={"epochs": 7}) == other
    monkeypatch.setattr(
        Recipe, "model_dump", lambda self, dump=Recipe.model_dump, **how: drop_epochs(dump(self, **how))
    )
    assert keys() == without, "as it was when recipes had none"


def drop_epochs(recipe):
    recipe["training"].pop("epochs")
    return recipe


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"state_noise": 1.0}},
        {"training": {"learning_rate": 1e-4}},
        {"training": {"noise_agreement": {}}},
        {"pooling": "mean"},
        {"fusion": "layer_mean"},
        {"fusion": {"name": "global_softmax", "heads": 2}},
    ],
)
def test_another_recipe_shares_none_of_the_keys(changes):
    assert not set(keys(**changes)) & set(keys())
    assert not set(keys(**changes)) & set(keys(fusion="global_softmax"))


def test_a_file_of_texts_is_what_it_says_and_not_where_it_lies(tmp_path):
    def of(path, by_path=False):
        texts = {"self_distillation": {"epochs_before": 1, "texts": str(path)}}
        return job_keys(job(training=texts), FewInputs(), by_path=by_path)

    for folder in ("here", "there", "edited"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text("one\ntwo\n" if folder != "edited" else "one\nthree\n")
    here, there, edited = (of(tmp_path / folder / "t.txt") for folder in ("here", "there", "edited"))
    assert here == there
    assert not set(here) & set(edited)
    once = [of(tmp_path / folder / "t.txt", by_path=True) for folder in ("here", "there")]
    assert not set(once[0]) & set(once[1])
    (tmp_path / "here/t.txt").rename(tmp_path / "here/u.txt")
    assert not set(of(tmp_path / "here/u.txt")) & set(here), "the name counts"
