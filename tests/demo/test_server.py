"""The page over HTTP: what it makes of uploads, whose pictures it shows, and which files it serves."""

import io
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from httpx import HTTPStatusError
from odd_pictures import REFUSED, SIZE, TAKEN, write_odd_pictures
from PIL import Image
from visitor import Refused, Visitor

from ccnet_hf.demo.checkpoints import Checkpoints
from ccnet_hf.demo.demo_arguments import DemoArguments
from ccnet_hf.demo.server import running


pytest.importorskip("gradio", reason="needs the extra demo")


@pytest.fixture(scope="module")
def arguments(checkpoint) -> DemoArguments:
    return DemoArguments(model_name_or_path=[str(checkpoint)], max_upload_megabytes=1, host="127.0.0.1")


@pytest.fixture(scope="module")
def address(arguments):
    with running(arguments) as (_, address):
        yield address


@pytest.fixture
def visitor(address) -> Visitor:
    return Visitor(address)


def test_odd_uploads_get_a_sentence_or_a_right_answer(visitor, tmp_path, picture):
    write_odd_pictures(tmp_path)
    assert visitor.segment(visitor.upload(picture))["overlay"] is not None
    for name, sentence in REFUSED.items():
        answer = visitor.segment(visitor.upload(tmp_path / name))
        assert sentence in answer["note"] and answer["overlay"] is None and answer["attended"] is None, name
        assert answer["download"]["value"] is None and not answer["classes"]["choices"], name
    for name in TAKEN:
        answer = visitor.segment(visitor.upload(tmp_path / name))
        image = Image.open(io.BytesIO(visitor.fetch(answer["overlay"])))
        assert image.size == SIZE and "48x32 pixels" in answer["note"], name
    assert visitor.segment(None)["note"].startswith("Choose a picture")


def test_the_label_map_is_the_predictors(visitor, arguments, picture):
    answer = visitor.segment(visitor.upload(picture))
    labels = np.asarray(Image.open(io.BytesIO(visitor.fetch(answer["download"]["value"]))))
    expected = Checkpoints(arguments).predictor("tiny").label_map(picture).numpy()
    assert np.array_equal(labels, expected)
    chosen = [label for _, label in answer["classes"]["choices"]]
    assert chosen == answer["classes"]["value"] and sorted(chosen) == np.unique(expected).tolist()


def test_a_redrawn_overlay_without_classes_is_the_picture(visitor, picture):
    visitor.segment(visitor.upload(picture))
    answer = visitor.trigger("classes", "input", [None, [], 1.0])
    redrawn = np.asarray(Image.open(io.BytesIO(visitor.fetch(answer["overlay"]))), dtype=int)
    assert np.abs(redrawn - np.asarray(Image.open(picture), dtype=int)).mean() < 6  # compressed with losses


def test_attention_of_a_click(visitor, picture):
    visitor.segment(visitor.upload(picture))
    answer = visitor.trigger("attended", "select", [None, "tiny"], {"index": [10, 60], "value": None})
    assert "<strong>10, 60</strong>" in answer["attention-note"] and "gamma = <strong>0.7</strong>" in str(answer)
    assert answer["weights"].count("<img") == 4 and answer["ratios"].count("<img") == 3
    answer = visitor.trigger("attended", "select", [None, "tiny"], {"index": [10, 64], "value": None})
    assert "is not on the image" in answer["attention-note"] and answer["weights"] == ""


def test_two_users_at_once_get_their_own_pictures(address, tmp_path):
    """Each works with a picture of a size of its own, while the other does."""

    def use(number: int) -> list[tuple[int, int]]:
        visitor, size = Visitor(address), (40 + number, 50 - number)
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size, (40 * number, 100, 100)).save(path)
        uploaded, seen = visitor.upload(path), []
        for _ in range(3):
            answers = [
                visitor.segment(uploaded)["overlay"],
                visitor.trigger("opacity", "input", [None, [], 0])["overlay"],
            ]
            seen += [Image.open(io.BytesIO(visitor.fetch(answer))).convert("RGB") for answer in answers]
        assert all(np.abs(np.asarray(image)[..., 0].astype(int) - 40 * number).max() < 8 for image in seen[1::2])
        return [image.size for image in seen]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == [[(40 + number, 50 - number)] * 6 for number in range(4)]


def test_a_state_of_another_session_is_not_there(visitor, picture):
    visitor.segment(visitor.upload(picture))
    visitor.session = "another"
    assert visitor.trigger("classes", "input", [None, [], 0.5])["overlay"] is None


def test_only_the_checkpoints_of_the_command(visitor, picture):
    with pytest.raises(Refused, match="not in the list of choices"):
        visitor.segment(visitor.upload(picture), "/etc")


def test_large_uploads_are_turned_away(visitor):
    answer = visitor.http.post("gradio_api/upload", files={"files": ("large.png", bytes(1_200_000))})
    assert answer.status_code == 413


def test_nothing_but_its_own_files_is_served(visitor, picture, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    own = visitor.upload(picture)["path"]
    folder = Path(own).parent
    (folder / "link.txt").symlink_to(secret)
    (folder / "folder").symlink_to(tmp_path)
    wanted = [
        "/etc/passwd",
        "../../../../etc/passwd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "pyproject.toml",
        str(Path.cwd() / "pyproject.toml"),
        f"{own}/../../../../../etc/passwd",
        f"{folder}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        str(secret),
        str(folder / "link.txt"),
        str(folder / "folder" / "secret.txt"),
        str(folder),
        "http://127.0.0.1:1/secret",
        "https://example.com/",
        "http:/127.0.0.1:1/secret",
    ]
    for path in wanted:
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "gradio_api/proxy=", "static/", "assets/"):
            answer = visitor.http.get(route + path)
            assert answer.status_code in (403, 404, 400, 405), (route, path, answer.status_code)
    assert visitor.http.get(f"gradio_api/file={own}").content == picture.read_bytes()


def test_a_file_that_was_not_uploaded_is_no_picture(visitor, picture, tmp_path):
    (tmp_path / "private.png").write_bytes(picture.read_bytes())
    for path in (str(tmp_path / "private.png"), "/etc/passwd"):
        with pytest.raises(Refused):
            visitor.segment({"path": path, "meta": {"_type": "gradio.FileData"}})


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/a.png", " HTTPS://example.com/a.png"])
def test_nothing_is_fetched_from_elsewhere(visitor, path):
    with pytest.raises(HTTPStatusError, match="403"):
        visitor.segment({"path": path, "meta": {"_type": "gradio.FileData"}})


def test_the_files_are_gone_afterwards(checkpoint, picture):
    with running(DemoArguments(model_name_or_path=[str(checkpoint)], host="127.0.0.1")) as (_, address):
        path = Path(Visitor(address).upload(picture)["path"])
        assert path.is_file()
    assert not path.parents[1].exists()


def test_the_space_opens_the_page_with_its_checkpoint(monkeypatch):
    seen = []
    monkeypatch.setattr("ccnet_hf.demo.main", lambda argv: seen.append(argv) or 0)
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(Path(__file__).parents[2] / "spaces" / "app.py"), run_name="__main__")
    assert (exit_.value.code, seen) == (0, [["--model_name_or_path", "checkpoint"]])
