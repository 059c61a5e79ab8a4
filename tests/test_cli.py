"""`ccnet-hf SUBCOMMAND`."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from ccnet_hf.cli import EXPERIMENTS, FORMER_NAMES, SUBCOMMANDS, main
from ccnet_hf.command import EXTRAS


ROOT = Path(__file__).parents[1]
ALL = SUBCOMMANDS | EXPERIMENTS
SECOND_WORDS = {"zoo": ["list"], "benchmark": ["op"], "kernels": ["info"]}


@pytest.mark.parametrize("name", ALL | FORMER_NAMES)
def test_every_subcommand_has_a_help_text(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([name, *SECOND_WORDS.get(name, []), "--help"])
    assert exit_.value.code == 0
    assert f"usage: ccnet-hf {name}" in capsys.readouterr().out
    assert callable(import_module((ALL | FORMER_NAMES)[name][0]).main)


def test_help_lists_every_subcommand(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output and purpose in output for name, (_, purpose) in SUBCOMMANDS.items())
    assert not any(f"\n  {name} " in output for name in EXPERIMENTS | FORMER_NAMES)


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "ccnet_hf", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "usage: ccnet-hf SUBCOMMAND" in done.stdout


def test_every_script_that_calls_the_package_is_a_subcommand_of_its_name():
    texts = {file.stem: file.read_text() for file in (ROOT / "scripts").glob("*.py")}
    found = {name: re.search(r"^from (ccnet_hf[\w.]*) import main$", text, re.M) for name, text in texts.items()}
    modules = {name: match[1] for name, match in found.items() if match}
    assert len(modules) > 5 and modules == {name: ALL[name][0] for name in modules}


@pytest.mark.parametrize(
    ("arguments", "problem"), [([], "no subcommand"), (["segmnt"], "unknown subcommand 'segmnt'")]
)
def test_without_a_subcommand_it_says_which_there_are(arguments, problem, capsys):
    assert main(arguments) == 2
    expected = f"error: {problem}, choose from {', '.join(SUBCOMMANDS)} (see --help)\n"
    assert capsys.readouterr().err == expected


def test_a_subcommand_interrupted_while_it_is_imported_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("ccnet_hf.command.import_module", interrupted)
    assert main(["segment", "image.png"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


WITHOUT_EXTRAS = """
import contextlib, importlib.metadata, io, json, sys

hidden, commands = json.loads(sys.argv[1])


class Hiding:
    \"\"\"Finds what the other finders find, but for the hidden modules.\"\"\"

    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders if hasattr(finder, "find_spec"))
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, context):
        for distribution in importlib.metadata.MetadataPathFinder.find_distributions(context):
            if distribution.metadata["Name"] not in hidden:
                yield distribution


sys.meta_path[:] = [Hiding()]
from ccnet_hf.cli import main

results = []
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(command)
        except SystemExit as exit_:
            status = exit_.code
    results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def commands_in_words() -> list[list[str]]:
    """Every command there is, the subcommands of subcommands too."""
    second = {"zoo": ["list", "verify", "to_mmsegmentation", "cards"], "kernels": ["build", "info", "hub"]}
    second["benchmark"] = ["op", "model", "growth", "end_to_end", "memory", "data"]
    return [[name, *words] for name in ALL for words in ([[word] for word in second.get(name, [])] or [[]])]


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory) -> dict[str, tuple[int, str, str]]:
    """Status, stdout and stderr of commands in one process that cannot import a module of any extra."""
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (8, 8)).save(folder / "image.png")
    model = ["--model_name_or_path", str(ROOT / "checkpoints" / "ccnet-mobilenetv2-camvid")]
    output, dataset = ["--output_dir", str(folder / "out")], ["--dataset_name", str(folder)]
    commands = [[*words, option] for words in commands_in_words() for option in ("--help", "--no_such")]
    commands += [
        ["train", "--variant", "ccnet-r50-cityscapes", *dataset, *output],
        ["eval", *model, *dataset],
        ["prepare_dataset", "camvid", "--source", str(folder), *output],
        ["receptive_field", *model, *dataset],
        ["push_to_hub", "--dataset", str(folder), "--hub_dataset_id", "me/data"],
        ["benchmark", "data"],
        ["segment", str(folder / "image.png"), *model, *output],
    ]
    hidden = [name for name in EXTRAS if name != "yaml"]  # which transformers needs as well
    words = [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps([hidden, commands])]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (folder / "out").exists()
    results = json.loads(done.stdout.splitlines()[-1])
    help_or_name = (" ".join(words) if words[-1] in ("--help", "--no_such") else words[0] for words in commands)
    return dict(zip(help_or_name, map(tuple, results), strict=True))


@pytest.mark.parametrize("words", commands_in_words(), ids=" ".join)
def test_help_and_wrong_arguments_need_no_extra(words, without_extras):
    status, out, err = without_extras[" ".join([*words, "--help"])]
    assert (status, err) == (0, "") and out.startswith(f"usage: ccnet-hf {' '.join(words)}")
    status, out, err = without_extras[" ".join([*words, "--no_such"])]
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["train", "eval", "prepare_dataset", "receptive_field", "push_to_hub", "benchmark", "segment"]
)
def test_a_command_names_the_extra_that_it_lacks(name, without_extras):
    status, out, err = without_extras[name]
    extra = "timm" if name == "segment" else "train"
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: \w+ is not installed: pip install 'ccnet-hf\[{extra}\]'\n", err), err


def test_the_table_of_extras_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = {"pyyaml": "yaml"}
    for extra in ("train", "timm", "export"):
        names = [re.match(r"[\w-]+", requirement)[0] for requirement in project["optional-dependencies"][extra]]
        names = set(names) - {"torch", "transformers"}  # of which the extra wants newer ones
        assert {modules.get(name, name) for name in names} == {name for name, its in EXTRAS.items() if its == extra}
