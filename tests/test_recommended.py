"""`fusion: recommended` is a name for a fusion written out in full, and leaves no trace of the name."""

import pytest

from layerbridge.config import RECOMMENDED, BridgeConfig, build_config, load_recipe
from layerbridge.errors import ConfigError
from layerbridge.results import config_sha256
from layerbridge.studies.study import load_study
from tests.studies.grid import write_study

FORMS = ["recommended", {"name": "recommended"}]


@pytest.mark.parametrize("form", FORMS)
def test_the_recommended_fusion_is_the_one_that_it_stands_for(form):
    ours, theirs = BridgeConfig(fusion=form), BridgeConfig(fusion=RECOMMENDED)
    assert ours == theirs
    assert config_sha256(ours) == config_sha256(theirs)
    assert ours.fusion.name == RECOMMENDED["name"] != "recommended"


def test_a_saved_config_names_the_fusion_itself():
    saved = BridgeConfig(fusion="recommended").model_dump_json()
    assert '"recommended"' not in saved
    assert BridgeConfig.model_validate_json(saved) == BridgeConfig(fusion=RECOMMENDED)


def test_options_beside_the_name_win(tmp_path):
    ours = BridgeConfig(fusion={"name": "recommended", "normalize_layers": False})
    assert (
        ours.fusion.model_dump() == BridgeConfig(fusion=RECOMMENDED | {"normalize_layers": False}).fusion.model_dump()
    )
    with pytest.raises(ConfigError, match="unknown key 'fusion.foo'"):
        build_config(BridgeConfig, {"fusion": {"name": "recommended", "foo": 1}}, where="here")


def test_a_recipe_an_override_and_a_study_may_say_it(tmp_path, tiny_models):
    (tmp_path / "r.yaml").write_text("task: sib200\nfusion: recommended\n")
    (tmp_path / "other.yaml").write_text("task: sib200\nfusion: last_layer\n")
    wanted = BridgeConfig(fusion=RECOMMENDED).fusion
    assert load_recipe(tmp_path / "r.yaml").fusion == wanted
    assert load_recipe(tmp_path / "other.yaml", ["fusion=recommended"]).fusion == wanted
    study = load_study(
        str(write_study(tmp_path, tiny_models, set_ups={"last_layer": {}, "x": {"fusion": "recommended"}}))
    )
    assert study.recipe(study.pairs["tiny"], "headlines", "x", 0, name="x").fusion == wanted


def test_a_name_that_is_nearly_it_is_answered_with_it():
    with pytest.raises(ConfigError, match="unknown fusion 'recomended'. Did you mean 'recommended'"):
        build_config(BridgeConfig, {"fusion": "recomended"}, where="here")
