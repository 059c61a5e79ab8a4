"""Every block of Python and of commands in README.md and docs/ does what it says.

`make test` runs the Python of a page as one program, and lets each command read its arguments. `make nightly` follows
a page from top to bottom, commands included, in a folder that looks like a clone with a dataset in `data/camvid`.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import ROOT, Block, all_blocks, blocks_of

from ccnet_hf import cli, command
from ccnet_hf.kernels import __main__ as kernels
from ccnet_hf.zoo import __main__ as zoo


PAGES = all_blocks()
_SHARED_FOLDERS = ("checkpoints", "examples", "scripts")


def pages_with(*whens: str, languages: tuple[str, ...]) -> list[str]:
    return [
        page
        for page, blocks in PAGES.items()
        if any(block.when in whens and block.language in languages for block in blocks)
    ]


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A folder with what a newcomer's clone has, which is where the blocks run."""
    for name in _SHARED_FOLDERS:
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def run_python(block: Block, namespace: dict) -> None:
    code = compile("\n" * (block.line - 1) + block.code, ROOT / block.page, "exec")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, namespace)


@pytest.mark.parametrize("page", pages_with("test", languages=("python",)))
def test_python(page, clone):
    namespace: dict = {"__name__": "__main__"}
    for block in PAGES[page]:
        if block.language == "python" and block.when == "test":
            run_python(block, namespace)


# Commands


def commands_of(code: str) -> list[list[str]]:
    """The calls of this package's commands in a block, each as the words after `ccnet-hf`."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*_words(line), ";"]:
            if word in ("&&", "||", "|", ";", "do"):
                if words := _called(words):
                    found.append(words)
                words = []
            else:
                words.append(word)
    return found


def _words(line: str) -> list[str]:
    if re.search(r"python -c|^\s*for |['\"]$", line) and line.count("'") % 2:
        return []  # a program in quotes that goes on
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quotation that ends on another line
        return []
    # What a loop or an earlier line gave a value.
    return ["1" if "$" in word else word for word in words if word != "$graphs"]


def _called(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[:2] == ["accelerate", "launch"]:
        script = next((index for index, word in enumerate(words) if word.endswith(".py") or word == "-m"), len(words))
        words = ["python", *words[script:]]
    if words[:1] == ["ccnet-hf"]:
        return words[1:]
    if words[:1] == ["python"] and len(words) > 1 and words[1].startswith("scripts/"):
        return [Path(words[1]).stem, *words[2:]]
    if words[:2] == ["python", "-m"] and len(words) > 2 and words[2].startswith("ccnet_hf"):
        return [*words[2].split(".")[1:], *words[3:]]
    return []


def test_commands_are_found_in_a_block():
    code = "A=1 accelerate launch --cpu scripts/train.py --seed $S \\\n  --x  # why\n"
    code += "make demo && ccnet-hf eval --a 'b c'\npython -m ccnet_hf.zoo verify DIR || break\n"
    assert commands_of(code) == [["train", "--seed", "1", "--x"], ["eval", "--a", "b c"], ["zoo", "verify", "DIR"]]


BASH = [block for blocks in PAGES.values() for block in blocks if block.language == "bash"]


@pytest.mark.parametrize("block", [block for block in BASH if commands_of(block.code)], ids=str)
def test_commands_take_their_arguments(block, clone, monkeypatch, capsys):
    """Also those of blocks that are not run."""
    monkeypatch.setattr(command, "_imported", lambda function: lambda *arguments: None)
    for words in commands_of(block.code):
        try:
            status = cli.main(words)
        except SystemExit as exit_:
            status = exit_.code
        assert status == 0, f"{' '.join(words)}: {capsys.readouterr().err}"


# Options of programs that are not ours, by what they belong to.
_FOREIGN = {
    "mmsegmentation": {"--tta", "--out"},
    "accelerate, torchrun, compute-sanitizer": {"--mixed_precision", "--cpu", "--nproc_per_node", "--num_processes"},
    "uvicorn, docker": {"--host", "--port", "--rm"},
    "tensorboard": {"--logdir"},
}


def test_options_in_the_text_exist():
    """An option that a page names in passing is one of some command."""
    known = set().union(*_FOREIGN.values())
    names = [[name] for name in cli.SUBCOMMANDS | cli.EXPERIMENTS if name not in ("zoo", "kernels", "benchmark")]
    names += [["zoo", name] for name in zoo.SUBCOMMANDS] + [["kernels", name] for name in kernels.SUBCOMMANDS]
    names += [["benchmark", name] for name in ("op", "model", "growth", "end_to_end", "memory", "data", "instances")]
    names += [["prepare_dataset", "folder"]]
    for words in names:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            cli.main([*words, "--help"])
        known.update(re.findall(r"--[\w-]+", output.getvalue()))
    unknown = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
            options = re.findall(r"(?<![\w-])--[a-z][\w-]*", code)
            unknown += [
                f"{page}: {option}" for option in options if option not in known and not option.startswith("--no-")
            ]
    assert not unknown


# Pages from top to bottom


@pytest.mark.nightly
@pytest.mark.parametrize("page", pages_with("test", "nightly", languages=("python", "bash")))
def test_a_page_from_top_to_bottom(page, clone):
    prepare_camvid(clone / "data" / "camvid")
    namespace: dict = {"__name__": "__main__"}
    for block in PAGES[page]:
        if block.when == "not run":
            continue
        if block.language == "python":
            run_python(block, namespace)
        elif block.language == "bash":
            done = subprocess.run(
                ["bash", "-euc", block.code], env=command_environment(clone), capture_output=True, text=True, cwd=clone
            )
            assert done.returncode == 0, f"{block}: {done.stderr[-2000:]}"


def prepare_camvid(folder: Path) -> None:
    """A dataset with CamVid's splits and ids, of stripes."""
    import datasets
    from tiny_dataset import striped_image, striped_label

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = {"image": [striped_image(0), striped_image(1)], "label": [striped_label(0), striped_label(1)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def command_environment(clone: Path) -> dict[str, str]:
    """Where `python`, `accelerate` and `ccnet-hf` are those of this test."""
    programs = clone / ".programs"
    programs.mkdir(exist_ok=True)
    modules = {"python": "", "ccnet-hf": "-m ccnet_hf", "accelerate": "-m accelerate.commands.accelerate_cli"}
    for name, arguments in modules.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
    }


# The harness itself


def test_marks():
    text = "a\n<!-- not run: needs a GPU -->\n```bash\nx\n```\n\n```python\ny\n```\n"
    text += "<!-- nightly: takes long -->\n```python\nz\n```\n"
    assert [(b.line, b.language, b.code, b.when, b.reason) for b in blocks_of(text, "p")] == [
        (4, "bash", "x\n", "not run", "needs a GPU"),
        (8, "python", "y\n", "test", ""),
        (12, "python", "z\n", "nightly", "takes long"),
    ]
    with pytest.raises(ValueError, match="p:3: not a mark of a block: 'later'"):
        blocks_of("<!-- later -->\n```bash\nx\n```\n", "p")


def test_a_block_that_fails_fails_the_test():
    (block,) = blocks_of("\n```python\nx = 1\nassert x == 2\n```\n", "README.md")
    with pytest.raises(AssertionError) as error:
        run_python(block, {})
    assert error.traceback[-1].lineno + 1 == 4


def test_what_is_never_run_says_what_it_lacks():
    reasons = [block.reason for blocks in PAGES.values() for block in blocks if block.when == "not run"]
    assert reasons and all(re.match(r"(needs|installs|takes)\b", reason) for reason in reasons)
