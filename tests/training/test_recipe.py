"""Recipes: dataclass < YAML < flag, and one sentence for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from matryoshka_st.errors import UserError
from matryoshka_st.recipes import recipe_path
from matryoshka_st.training.recipe import as_yaml, parse_recipe

SCRIPTS = Path(__file__).parents[2] / "train_scripts"
EVAL = Path(__file__).parents[2] / "eval"


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flag_beats_yaml_beats_default(tmp_path: Path) -> None:
    config = written(tmp_path / "r.yaml", "scale: 30\nlearning_rate: 1.0e-3\nmatryoshka_dims: [64, 32]\n")
    recipe = parse_recipe(["--config", config, "--learning_rate", "5e-4", "--matryoshka-dims", "16"])
    assert recipe.matryoshka.scale == 30.0
    assert recipe.trainer.learning_rate == 5e-4
    assert recipe.matryoshka.matryoshka_dims == [16]
    assert recipe.trainer.per_device_train_batch_size == 64


def test_yaml_null_and_nested_values(tmp_path: Path) -> None:
    config = written(tmp_path / "r.yaml", "save_total_limit: null\naccelerator_config: {split_batches: true}\n")
    trainer = parse_recipe(["--config", config]).trainer
    assert trainer.save_total_limit is None
    assert trainer.accelerator_config.split_batches is True


def test_defaults_report_nowhere_and_keep_equal_texts_apart() -> None:
    trainer = parse_recipe([]).trainer
    assert trainer.report_to == []
    assert trainer.batch_sampler.value == "no_duplicates"
    assert not trainer.push_to_hub


def test_the_written_config_reads_back_to_the_same_run(tmp_path: Path) -> None:
    recipe = parse_recipe(["--matryoshka_dims", "64", "8", "--weight_decay", "0.1", "--rotate", "train"])
    path = written(tmp_path / "run_config.yaml", yaml.safe_dump(as_yaml(recipe)))
    assert as_yaml(parse_recipe(["--config", path])) == as_yaml(recipe)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--learning_rat", "1"], r"Unknown flag --learning_rat; did you mean '--learning_rate'\?"),
        (["--matryoshka_dims", "12.5"], r"--matryoshka_dims got '12\.5', which is not an integer"),
        (["--learning_rate", "fast"], "--learning_rate got 'fast', which is not a number"),
        (["--bad_rows", "keep"], "invalid choice: 'keep'"),
        (["--config", "missing.yaml"], r"Recipe missing\.yaml cannot be read"),
        (["--config"], "--config needs the path of a recipe"),
        (["--eval_strategy", "sometimes"], "sometimes is not a valid IntervalStrategy"),
        (["--eval_size", "1"], "eval_size is 1"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0; give 1 or more"),
        (["--per_device_eval_batch_size", "-1"], "per_device_eval_batch_size is -1; give 1 or more"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps is 0; give 1 or more"),
        (["--hardness_strength", "9"], r"hardness_strength is 9\.0, and no hardness_mode says .*; give one"),
        (["--hardness_mode", "all_negatives"], "hardness_mode is all_negatives, and its hardness_strength of 0 "),
        (["--teacher", "bundled"], "teacher is 'bundled', and its teacher_weight of 0 leaves it out .*; give a"),
        (["--push_to_hub", "--output_dir", "o"], r"push the finished model: SentenceTransformer\('o/model'\)"),
    ],
)
def test_bad_flags(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        parse_recipe(argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rat: 1", r"Unknown key 'learning_rat' in .*r\.yaml; did you mean 'learning_rate'\?"),
        ("- a\n- b", r"r\.yaml holds a list; it is a list of 'key: value' lines"),
        ("a: [1,", r"r\.yaml is not YAML \(.*line 1"),
        ("matryoshka_dims: [64, x]", "--matryoshka_dims got 'x', which is not an integer"),
    ],
)
def test_bad_recipe_files(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_recipe(["--config", written(tmp_path / "r.yaml", text)])


def test_a_recipe_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes("output_dir: größer".encode("latin-1"))
    with pytest.raises(UserError, match=r"r\.yaml is not UTF-8 text \(invalid .*\); save the file as UTF-8"):
        parse_recipe(["--config", str(tmp_path / "r.yaml")])


@pytest.mark.parametrize("path", sorted((SCRIPTS / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_parse_and_are_found_by_name(path: Path) -> None:
    assert recipe_path(path.stem).read_text() == path.read_text()
    recipe = parse_recipe(["--config", str(path)])
    assert recipe.matryoshka.matryoshka_dims == sorted(recipe.matryoshka.matryoshka_dims or [], reverse=True)


@pytest.mark.parametrize("name", ["ablation.yaml", "ablation_gpu.yaml"])
def test_the_shipped_plans_are_whole_and_each_row_is_a_recipe(name: str, tmp_path: Path) -> None:
    plan = yaml.safe_load((EVAL / name).read_text())
    assert {"recipe", "dims", "seeds", "untrained", "tasks", "rows"} <= plan.keys()
    assert {"host", "ours"} <= plan["rows"].keys()
    recipes = (EVAL / plan["recipe"]).parent
    of_the_plan = {"host", "seeds", "fixed", "first", "rotate_after", "trained", "recipe"}
    for row in plan["rows"].values():
        recipe = yaml.safe_load((recipes / row.get("recipe", Path(plan["recipe"]).name)).read_text())
        own = {key: value for key, value in row.items() if key not in of_the_plan}
        (tmp_path / "row.yaml").write_text(yaml.safe_dump({**recipe, **own}))
        parse_recipe(["--config", str(tmp_path / "row.yaml")])
        assert "first" not in row or (recipes / row["first"]).is_file()


def test_the_general_recipe_with_service_docs_differs_in_what_its_rotation_reads() -> None:
    plain, docs = (yaml.safe_load(recipe_path(f"minilm-general{name}").read_text()) for name in ("", "-services"))
    assert (docs.pop("rotate"), docs.pop("rotate_texts")) == (
        [*plain.pop("rotate"), "service_docs.parquet"],
        [*plain.pop("rotate_texts"), 30000],
    )
    assert {**docs, "output_dir": None} == {**plain, "output_dir": None}


def test_the_general_recipe_with_routes_adds_a_rotation_for_retrieval() -> None:
    names = ("minilm-general-services", "minilm-general-routes")
    docs, routes = (yaml.safe_load(recipe_path(name).read_text()) for name in names)
    sources, texts = routes.pop("rotate_retrieval"), routes.pop("rotate_retrieval_texts")
    assert len(sources) == len(texts) and "pubmed.parquet" in sources and "service_docs.parquet" not in sources
    assert {**routes, "output_dir": None} == {**docs, "output_dir": None}


def test_an_unknown_recipe_name_lists_those_there_are() -> None:
    names = (
        "bert-base-all-nli, minilm-general, minilm-general-few-dims-gpu, minilm-general-gpu, minilm-general-routes, "
        "minilm-general-services, minilm-in-domain, minilm-neighbours-gpu, minilm-pairs, minilm-sts, "
    )
    with pytest.raises(UserError, match=f"no recipe 'slow'; use one of {names}minilm-sts-few-dims, quickstart"):
        recipe_path("slow")


@pytest.mark.parametrize("path", sorted((SCRIPTS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs_are_ones_accelerate_takes(path: Path) -> None:
    config = load_config_from_file(str(path))
    kinds = {"one_gpu": "NO", "multi_gpu": "MULTI_GPU", "multi_node": "MULTI_GPU", "fsdp": "FSDP"}
    assert config.distributed_type == kinds[path.stem]
    assert config.mixed_precision == "bf16"


def test_help_shows_our_flags_before_the_trainer_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_recipe(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert text.index("--matryoshka_dims") < text.index("--learning_rate ")
    assert "accelerate launch" in text
