"""The page in a browser, as people use it: what they see, choose, click, and get wrong."""

import json
from pathlib import Path

import pytest
from PIL import Image


pytest.importorskip("gradio", reason="needs the extra demo")
pytest.importorskip("playwright", reason="needs playwright, of the extra dev")

from ccnet_hf.demo.demo_arguments import DemoArguments
from ccnet_hf.demo.screenshots import CHROMIUM, click_on, open_browser, wait_for_image
from ccnet_hf.demo.server import running


pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason=f"needs {CHROMIUM}, of Debian's package chromium, which is not installed"
)


def test_an_upload_a_click_and_a_wrong_file(checkpoint, picture, tmp_path):
    other = tmp_path / "other.png"
    Image.open(picture).crop((0, 0, 40, 64)).save(other)
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no picture")
    with (
        running(DemoArguments(model_name_or_path=[str(checkpoint)], host="127.0.0.1")) as (_, address),
        open_browser() as browser,
    ):
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(60_000)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)

        def choose(file: Path, note: str) -> None:
            page.locator("#chosen input[type=file]").first.set_input_files(file)
            page.locator("#note").filter(has_text=note).wait_for()

        choose(picture, "96x64 pixels")
        wait_for_image(page, "#overlay img")
        boxes = page.locator("#classes .wrap label")
        assert boxes.count() > 1 and "%" in boxes.first.inner_text()
        with page.expect_download() as downloading:
            page.locator("#download").click()
        assert downloading.value.suggested_filename == "picture_labels.png"
        assert Image.open(downloading.value.path()).size == (96, 64)

        before = page.locator("#overlay img").get_attribute("src")
        boxes.first.click()
        page.wait_for_function(f"document.querySelector('#overlay img').src !== {json.dumps(before)}")

        page.get_by_role("tab", name="Attention").click()
        click_on(page, 0.5, 0.25)
        assert page.locator("#weights img").count() == 4
        note = page.locator("#attention-note").inner_text()
        x, y = (int(number) for number in note.removeprefix("Pixel ").partition(":")[0].split(", "))
        assert abs(x - 48) <= 1 and abs(y - 16) <= 1 and "gamma = 0.7" in note

        page.get_by_role("tab", name="Segment").click()
        choose(wrong, "wrong.png: cannot be read (it is not an image in ")
        assert page.locator("#overlay img").count() == 0
        choose(other, "40x64 pixels")
        wait_for_image(page, "#overlay img")

        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked)
