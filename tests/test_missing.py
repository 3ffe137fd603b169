"""What is not there, or does nothing: said once, in one plain line, before anything is written."""
import importlib

import pytest

import runtime
from tools import demo, exercises, figures, labelling


@pytest.mark.parametrize("line", [
    "sft --data {no} --out {tmp}/o", "sft --data {data} --init {no} --out {tmp}/o",
    "reward --init {no} --comparisons {no} --out {tmp}/o",
    "reward --init {sup} --query-length 80 --response-length 16 --batch 8 --comparisons {no} --out {tmp}/o",
    "reward --init {sup} --query-length 80 --response-length 16 --batch 8 --comparisons {labels} "
    "--data {no} --out {tmp}/o",
    "ppo --policy {no} --reward {no} --data {data} --out {tmp}/o",
    "ppo --policy {sup} --reward {no} --data {data} --query-length 80 --response-length 16 --out {tmp}/o",
    "ppo --config {no} --out {tmp}/o",
    "sample --policy {no}", "sample --policy {sup} --reward {no}", "sample --policy {sup} --data {no}",
    "sample --policy {sup} --post-file {no}", "label --pairs {no} --out {tmp}/o",
    "evaluate --run {no}",
    "tools.rouge --pairs {no} --out {tmp}/o", "tools.pairs --policy {no} --pairs 3 --out {tmp}/o",
    "tools.pairs --policy {sup} --others {no} --pairs 3 --out {tmp}/o",
    "tools.judges --run {no}", "tools.judges --run {runs} --judge labels:{no}",
    "tools.side --run {no}", "tools.play --run {no}", "tools.report --run {no}", "tools.plot {no}",
    "tools.doctor {no}", "tools.tokenizer --data {no}", "tools.figures draw --out {no}",
    "tools.figures compare {no} {no}", "tools.labelling serve --pairs {no} --db {tmp}/o",
    "tools.labelling stats --db {no}", "tools.labelling export --db {no} --out {tmp}/o",
    "tools.labelling me --pairs {no} --out {tmp}/o", "tools.download describe {no}",
    "tools.convert export {no} --out {tmp}/o", "tools.convert import {no} --out {tmp}/o",
    "tools.convert import-openai {no} --tokenizer {data} --out {tmp}/o", "tools.exercises check --out {no}"])
def test_what_is_missing_is_named_once_without_an_error_number(
        line, tmp_path, data_dir, supervised, comparisons, capsys):
    script, *words = line.format(tmp=tmp_path, no=f"{tmp_path}/nowhere", data=data_dir, sup=supervised,
                                 labels=comparisons, runs=supervised.parent).split()
    module = importlib.import_module(script)
    with pytest.raises(SystemExit) as caught:
        runtime.flags.entry(lambda: module.main(words))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "Errno" not in said and "nowhere" in said
    assert said.count("No such file") <= 1 and not list(tmp_path.iterdir())


def test_a_run_in_the_place_of_one_of_its_stages_names_them(supervised, tmp_path, data_dir):
    sample = importlib.import_module("sample")
    with pytest.raises(runtime.Problem, match=f"did you mean .*{supervised}"):
        sample.main(["--policy", str(supervised.parent)])
    with pytest.raises(runtime.Problem, match="config.json is missing$"):
        sample.main(["--policy", str(data_dir)])


@pytest.mark.parametrize("tool, names", [
    (labelling, "me | serve | stats"), (exercises, "start | check"), (figures, "sweep | draw"),
    (importlib.import_module("tools.convert"), "import | import-openai | export"),
    (importlib.import_module("tools.download"), "tldr | queries")])
def test_without_a_command_a_tool_asks_for_one(tool, names):
    with pytest.raises(runtime.Problem) as caught:
        tool.main([])
    assert names in str(caught.value) and "?" in str(caught.value)
    assert "none" not in str(caught.value).lower() and "\n" not in str(caught.value)


def test_a_way_to_choose_pairs_for_rounds_needs_rounds(capsys):
    for line, code in (("--by uncertainty", 2), ("--by uncertainty --rounds 1", 2),
                       ("--by uncertainty --rounds 2", 0), ("--rounds 1", 0)):
        found = 0
        try:
            demo.flags(line.split())
        except SystemExit as left:
            found = left.code
        assert found == code, line
        assert ("give --rounds 2" in capsys.readouterr().err) == bool(code)
