"""`make pictures` draws every picture that the pages show."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import PAGES, ROOT
from PIL import Image


@pytest.fixture(scope="module")
def pictures():
    pytest.importorskip("matplotlib", reason="needs the extra train")
    specification = importlib.util.spec_from_file_location("pictures", ROOT / "scripts" / "pictures.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_help_needs_no_extra():
    script = str(ROOT / "scripts" / "pictures.py")
    code = "import runpy, sys; sys.modules['matplotlib'] = None; sys.argv[:] = sys.argv[1:]; "
    words = [sys.executable, "-c", f"{code}runpy.run_path(sys.argv[0], run_name='__main__')", script, "--help"]
    helped = subprocess.run(words, capture_output=True, text=True)
    assert helped.returncode == 0 and "far_discs" in helped.stdout


def test_every_picture_has_its_function(pictures):
    shown = {
        Path(target).stem
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8"))
    }
    drawn = pictures.PICTURES.keys() | pictures.LONG.keys()
    assert {name for name in shown if not name.startswith("demo_")} == drawn - {"screenshots"}
    assert {file.stem for file in (ROOT / "docs" / "images").glob("[!d]*.png")} == drawn - {"screenshots"}


def test_growth_is_drawn_from_the_numbers_on_the_page(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "IMAGES", tmp_path)
    drawn = {}
    draw = pictures.draw_growth
    monkeypatch.setattr(pictures, "draw_growth", lambda blocks, time: drawn.update(blocks) or draw(blocks, time))
    pictures.growth(tmp_path)
    assert Image.open(tmp_path / "growth.png").size == (1200, 480)
    assert [len(points) for points in drawn.values()] == [7, 7, 6]
    largest = drawn["non-local block"][-1]
    assert (largest.height, largest.seconds, largest.bytes) == (1536, [37.547], 10530 * 2**20)
