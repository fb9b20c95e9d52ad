"""A configuration is checked whole before anything runs; what is wrong is named, with the nearest right word."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from arrowds.errors import ConfigError, MissingExtraError
from arrowds.pipeline import load_config


def test_json_yaml_and_dictionary_say_the_same(tmp_path, configuration):
    values = configuration()
    (tmp_path / "c.json").write_text(json.dumps(values))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    expected = load_config(values)
    assert (
        load_config(tmp_path / "c.json") == load_config(str(tmp_path / "c.yaml")) == load_config(expected) == expected
    )
    assert expected.batches.seed == 1234 and expected.training.engine == "torch"


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("batches", {"micro_batchsize": 4}, r"'micro_batchsize' in 'batches'; did you mean 'micro_batch_size'\?"),
        ("training", {"stepz": 4}, r"unknown key 'stepz' in 'training'; did you mean 'steps'\?"),
        ("index", {"metrics": [{"kind": "seqlen", "colunm": 1}]}, r"'index.metrics.seqlen'; did you mean 'column'\?"),
        ("index", {"metrics": [{"kind": "expr", "name": "n", "sql": "1", "sqll": "1"}]}, r"did you mean 'sql'\?"),
        ("index", {"metrics": [{"kind": "rarity"}]}, "'seqlen', 'vocab_rarity', 'token_counts'"),
        ("model", {"qqq": 1}, "unknown key 'qqq' in 'model'; known: arguments, factory, seed"),
        ("curriculum", {"seqlen": {"min_dificulty": 1}}, r"did you mean 'min_difficulty'\?"),
        ("curicculum", {}, r"unknown key 'curicculum' in the configuration; did you mean 'curriculum'\?"),
        ("training", {"steps": 0}, "training.steps: .*greater than or equal to 1, got 0"),
        ("training", {"engine": "jax"}, "training.engine: .*'torch' or 'deepspeed'"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(configuration, section, values, message):
    with pytest.raises(ConfigError, match=message):
        load_config(configuration(**{section: values}))


def test_every_mistake_is_listed_at_once(configuration):
    with pytest.raises(ConfigError, match=r"'micro_bach_size'.*'stepz'"):
        load_config(configuration(training={"stepz": 1}, batches={"micro_bach_size": 1}))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{", "can't be read"),
        ("c.json", "[1]", "is a list"),
        ("c.yaml", "a: [", "is not valid YAML"),
        ("c.yaml", "!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("c.toml", "a = 1", r"must end in \.json, \.yaml or \.yml"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / name)
    assert name in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.json can't be read"):
        load_config(tmp_path / "nothing.json")


def test_yaml_without_pyyaml_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("a: 1")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"arrowds\[all\]"):
        load_config(tmp_path / "c.yaml")
