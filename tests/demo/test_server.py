"""The page over HTTP: what it makes of uploads, whose pictures it shows, and which files it serves."""

import io
import json
import math
import os
import runpy
import signal
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from httpx import HTTPStatusError
from odd_pictures import REFUSED, SIZE, TAKEN, write_odd_pictures
from PIL import Image
from visitor import Refused, Visitor

from ccnet_hf.demo.checkpoints import Checkpoints
from ccnet_hf.demo.demo_arguments import DemoArguments
from ccnet_hf.demo.server import running, serve
from ccnet_hf.errors import InputError


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


def test_a_name_that_begins_with_a_dot(visitor, picture, tmp_path, monkeypatch):
    hidden = tmp_path / ".hidden.png"
    hidden.write_bytes(picture.read_bytes())
    uploaded = visitor.upload(hidden)
    monkeypatch.chdir(Path(uploaded["path"]).parents[3])  # gradio refuses such names below the current folder
    answer = visitor.segment(uploaded)
    assert "96x64 pixels" in answer["note"]
    assert Image.open(io.BytesIO(visitor.fetch(answer["download"]["value"]))).size == (96, 64)


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
    uploaded = visitor.upload(picture)
    for name, shown in (("/etc", "/etc"), (["tiny"], "tiny"), (None, "None"), ("x" * 100_000, "xxx...xxx")):
        answer = visitor.segment(uploaded, name)
        assert "there is no checkpoint" in answer["note"] and "here; choose from tiny" in answer["note"]
        assert shown in answer["note"] and len(answer["note"]) < 300 and answer["overlay"] is None


@pytest.mark.parametrize("opacity", [None, "0.5", -1, 2, [], math.nan])
def test_an_opacity_that_is_none(visitor, picture, opacity, capfd):
    uploaded = visitor.upload(picture)
    for part, event, data in (
        ("chosen", "change", [uploaded, "tiny", opacity]),
        ("opacity", "input", [None, [0], opacity]),
    ):
        with pytest.raises(Refused, match="the opacity is a number from 0 to 1"):
            visitor.trigger(part, event, data)
    assert "Traceback" not in capfd.readouterr().err


def test_events_that_say_too_little(visitor, picture, capfd):
    uploaded = visitor.upload(picture)
    visitor.segment(uploaded)
    for data in ([], [uploaded, "tiny"], ["a file", "tiny", 0.5], [[], "tiny", 0.5], [{"path": 5}, "tiny", 0.5]):
        with pytest.raises(Refused, match="this is nothing that the page sends"):
            visitor.trigger("chosen", "change", data)
    for labels in (None, "abc", ["a"], [None], [[0]], [-1], [10**30]):
        with pytest.raises(Refused, match="the classes are chosen by a list"):
            visitor.trigger("classes", "input", [None, labels, 0.5])
    indices = (None, "ab", 5, [1], [1, 2, 3], ["a", "b"], [None, None], [math.nan, 1], [math.inf, 1], [10**400, 1])
    for click in (None, [], {}, "abc", *({"index": index} for index in indices)):
        answer = visitor.trigger("attended", "select", [None, "tiny"], click)
        assert "a click is on a pixel" in answer["attention-note"] and answer["weights"] == "", click
    answer = visitor.trigger("attended", "select", [None, "tiny"], {"index": [10.0, 60]})
    assert "<strong>10, 60</strong>" in answer["attention-note"]
    assert "Traceback" not in capfd.readouterr().err


def test_large_uploads_are_turned_away(visitor):
    answer = visitor.http.post("gradio_api/upload", files={"files": ("large.png", bytes(1_200_000))})
    assert answer.status_code == 413
    many = [("files", (f"{number}.png", bytes(300_000))) for number in range(4)]
    answer = visitor.http.post("gradio_api/upload", files=many)
    assert answer.status_code == 413 and "at most 1,048,576 bytes" in answer.text
    parts = iter([b"a part", b"another"])  # of a size that is not announced
    assert visitor.http.post("gradio_api/upload", content=parts).status_code == 413


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
        for file in ({"path": path, "meta": {"_type": "gradio.FileData"}}, {"path": path}):
            with pytest.raises(Refused, match="nothing that the page sends"):
                visitor.segment(file)
            with pytest.raises(Refused, match="nothing that the page sends"):
                visitor.trigger("segment-video", "click", [file, "tiny"])


def test_only_the_routes_of_the_page_are_open(visitor):
    file = {"path": "http://127.0.0.1:1/a.png", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file, "tiny", 0.5], "fn_index": 0, "session_hash": visitor.session}
    for route in ("call/segment", "call/v2/segment", "run/segment", "api/segment", "run/load_example"):
        assert visitor.http.post(f"gradio_api/{route}", json=body).status_code == 403, route
    recording = {"video": ("a.mp4", b"no video")}
    assert visitor.http.post("gradio_api/process_recording", files=recording).status_code == 403
    for route in ("component_server", "stream/a", "login", "vibe-edit", "profiling/clear", "run-history/connect"):
        assert visitor.http.post(f"gradio_api/{route}", json={}).status_code == 403, route
    for route in ("deep_link", "runs", "info", "openapi.json", "queue/status", "profiling/summary", "vibe-code"):
        assert visitor.http.get(f"gradio_api/{route}").status_code == 403, route
    for route in ("monitoring", "monitoring/summary", "gradio_api/monitoring", "monitoring/a", "docs", "pwa_icon"):
        assert visitor.http.get(route).status_code == 403, route
    assert visitor.http.put("gradio_api/upload").status_code == 403


def test_large_json_is_turned_away_unread(visitor):
    body = {"data": [], "fn_index": 0, "session_hash": visitor.session}
    for route in ("queue/join", "cancel", "reset"):
        padded = json.dumps(body) + " " * (1 << 20)  # which is JSON
        answer = visitor.http.post(f"gradio_api/{route}", content=padded, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "1,048,576 bytes" in answer.text, route


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/a.png", " HTTPS://example.com/a.png"])
def test_nothing_is_fetched_from_elsewhere(visitor, path):
    with pytest.raises(HTTPStatusError, match="403"):
        visitor.segment({"path": path, "meta": {"_type": "gradio.FileData"}})


def test_the_files_are_gone_afterwards(checkpoint, picture):
    with running(DemoArguments(model_name_or_path=[str(checkpoint)], host="127.0.0.1")) as (blocks, address):
        path = Path(Visitor(address).upload(picture)["path"])
        assert path.is_file() and blocks.enable_monitoring is False
    assert not path.parents[1].exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_the_page_removes_its_files(monkeypatch, arguments, name):
    number, ended = getattr(signal, name), []

    class Page:
        def block_thread(self):
            os.kill(os.getpid(), number)
            time.sleep(10)

    @contextmanager
    def answering(arguments):
        with tempfile.TemporaryDirectory() as folder:
            ended.append(Path(folder))
            yield Page(), "http://127.0.0.1:1/"

    monkeypatch.setattr("ccnet_hf.demo.server.running", answering)
    former = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as exit_:
            serve(arguments)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, former)
    assert exit_.value.code == 128 + number and not ended[0].exists()


def test_a_place_where_it_cannot_listen_is_said_before_anything_is_loaded(checkpoint, monkeypatch):
    monkeypatch.setattr("ccnet_hf.demo.checkpoints.Checkpoints.predictor", lambda *_: pytest.fail("was loaded"))

    def message(**place) -> str:
        with (
            pytest.raises(InputError) as refused,
            running(DemoArguments(model_name_or_path=[str(checkpoint)], **place)),
        ):
            pass
        return str(refused.value)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        expected = f"the page cannot listen on --host 127.0.0.1 and --port {port}: address already in use"
        assert message(host="127.0.0.1", port=port) == expected
        monkeypatch.setenv("GRADIO_SERVER_PORT", str(port))
        assert message(host="127.0.0.1") == expected
    assert "cannot listen on --host 300.1.1.1 and --port 1024: " in message(host="300.1.1.1", port=1024)
    assert "--host 192.0.2.1 and" in message(host="192.0.2.1") and "--host " in message(host="a" * 70)
    for value in ("abc", "", "70000", "7860 "):
        monkeypatch.setenv("GRADIO_SERVER_PORT", value)
        assert "the variable GRADIO_SERVER_PORT must be" in message(host="127.0.0.1")


def test_the_space_opens_the_page_with_its_checkpoint(monkeypatch):
    seen = []
    monkeypatch.setattr("ccnet_hf.demo.main", lambda argv: seen.append(argv) or 0)
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(Path(__file__).parents[2] / "spaces" / "app.py"), run_name="__main__")
    assert (exit_.value.code, seen) == (0, [["--model_name_or_path", "checkpoint"]])
