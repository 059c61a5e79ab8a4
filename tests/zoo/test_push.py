"""Pushing to a fake Hub with the real client: what arrives, what is not sent twice, and what is refused."""

import ast
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from fake_hub import PUSH_REQUESTS, FakeHub
from fake_hub_store import Fault
from huggingface_hub import HfApi, ModelCard, constants, parse_eval_result_entries
from safetensors.torch import load_file, save_file
from tiny_zoo import connect, quiet, write_checkpoint

from ccnet_hf.data.preparation.parquet import parquet_writer
from ccnet_hf.data.preparation.prepare import prepare_dataset, push_dataset
from ccnet_hf.hub import collect
from ccnet_hf.recipes import get_recipe
from ccnet_hf.zoo.push import main


NAME, SHORT_NAME = "ccnet-r50-voc12aug-512x512-20k", "ccnet-r50-voc12aug"
REPO_IDS = [f"me/{NAME}", f"me/{SHORT_NAME}"]
OTHER_NAME = "ccnet-r50-voc12aug-512x512-40k"  # has no short name


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in (NAME, OTHER_NAME):
        write_checkpoint(get_recipe(name), folder)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as hub, quiet():
        connect(hub, monkeypatch, tmp_path / "no_token")
        yield hub


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that would have been waited."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def push(checkpoints: Path, *arguments: str, variant: str = NAME, namespace: str = "me") -> int:
    return main(
        ["--variant", variant, "--checkpoints", str(checkpoints), "--namespace", namespace, *arguments],
    )


def is_whole(files: dict[str, bytes], checkpoint: Path) -> bool:
    """Whether a repository holds the checkpoint with its code, as `test_what_arrives` looks at it more closely."""
    return (
        files.get("model.safetensors") == (checkpoint / "model.safetensors").read_bytes()
        and {"README.md", "config.json", "preprocessor_config.json", "modeling_ccnet.py"} <= files.keys()
    )


def complaint(capsys) -> str:
    """The line that `push` ended with."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_what_arrives(hub, checkpoints, capsys):
    assert push(checkpoints) == 0
    assert sorted(hub.repositories) == sorted(("model", repo_id) for repo_id in REPO_IDS)
    for repo_id in REPO_IDS:
        repository = hub.repositories["model", repo_id]
        assert len(repository.commits) == 2  # the Hub's own, and everything in one
        assert not repository.private
        assert is_whole(repository.files, checkpoints / NAME)
        assert repository.head.files["model.safetensors"].is_lfs
        files = repository.files
        config, processor = json.loads(files["config.json"]), json.loads(files["preprocessor_config.json"])
        assert config["auto_map"]["AutoModel"] == "modeling_ccnet.CCNetModel"
        saved = json.loads((checkpoints / NAME / "config.json").read_text())
        assert config | {"auto_map": None} == saved | {"auto_map": None}
        assert "auto_map" not in processor and "image_processor_type" not in processor
        saved = json.loads((checkpoints / NAME / "preprocessor_config.json").read_text())
        assert processor.items() <= saved.items()
        card = ModelCard(files["README.md"].decode())
        assert card.data.model_name == repo_id.removeprefix("me/")
        assert f'model="{repo_id}"' in card.content
        assert files["requirements.txt"].decode().startswith("transformers>=")
        results = sorted(path for path in files if path.startswith(".eval_results/"))
        assert [path.partition("/")[2] for path in results] == [
            "pascal-voc-2012-miou-multi-scale-and-flip.yaml",
            "pascal-voc-2012-miou-single-scale.yaml",
        ]
        entries = [entry for path in results for entry in parse_eval_result_entries(yaml.safe_load(files[path]))]
        assert [(entry.dataset_id, entry.value) for entry in entries] == [
            ("pascal_voc_2012", get_recipe(NAME).reported[score])
            for score in ("mean_iou_multi_scale_flip", "mean_iou")
        ]
        assert [entry.source_url for entry in entries] == [result.source_url for result in card.data.eval_results]
    assert hub.collections == {}  # that is for all of them


def test_a_repository_holds_what_it_imports(hub, checkpoints):
    """Flat files that import each other and what a plain installation of transformers with torch has."""
    assert push(checkpoints) == 0
    files = hub.repositories["model", REPO_IDS[0]].files
    modules = {name.removesuffix(".py"): content for name, content in files.items() if name.endswith(".py")}
    allowed = {"torch", "torchvision", "PIL", "numpy", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    imported = set()
    for content in modules.values():
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in modules
                imported.add(node.module)
            elif isinstance(node, ast.ImportFrom):
                assert node.module.partition(".")[0] in allowed
            elif isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed
    for names in json.loads(files["config.json"])["auto_map"].values():
        for name in names if isinstance(names, list) else [names]:
            module, class_name = name.split(".")
            imported.add(module)
            classes = [node.name for node in ast.parse(modules[module]).body if isinstance(node, ast.ClassDef)]
            assert class_name in classes
    assert imported | {"handler"} == modules.keys()  # and nothing else travels


def test_second_push_sends_nothing(hub, checkpoints, capsys):
    assert push(checkpoints) == 0
    hub.log.clear()
    assert push(checkpoints) == 0
    assert not {kind for kind, _ in hub.log} & {"lfs-upload", "lfs-verify", "commit"}
    assert capsys.readouterr().out.splitlines()[-2:] == [f"{repo_id}: up to date" for repo_id in REPO_IDS]


def test_an_update_sends_what_changed(hub, checkpoints, tmp_path, capsys):
    assert push(checkpoints) == 0
    shutil.copytree(checkpoints / NAME, tmp_path / NAME)
    weights = load_file(tmp_path / NAME / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, tmp_path / NAME / "model.safetensors", metadata={"format": "pt"})
    repository = hub.repositories["model", REPO_IDS[0]]
    repository.commit(repository.head.files | {"demo.png": repository.head.files["config.json"]}, "by hand")
    before = repository.head
    assert push(tmp_path) == 0
    assert repository.head.parent == before.oid
    changed = {path for path, blob in repository.head.files.items() if before.files[path] is not blob}
    assert changed == {"model.safetensors"}
    assert is_whole(repository.files, tmp_path / NAME)


@pytest.mark.parametrize("action", ["cut", "cut-reply"])
@pytest.mark.parametrize("kind", [kind for kind in PUSH_REQUESTS if "collection" not in kind])
def test_a_connection_cut_for_good_at(kind, action, hub, checkpoints, waits, capsys):
    """The first run fails in one line or gets through; the second one completes and sends nothing again."""
    hub.faults = [Fault(kind, action)]
    status = push(checkpoints)
    assert hub.count(kind) > 1  # it was met, and tried again
    if action == "cut" and kind != "lfs-verify":  # what is there need not be verified again
        assert status == 1
    if status:
        line = complaint(capsys)
        assert "the connection to the Hub broke" in line and "run the same command again" in line
    for repository in hub.repositories.values():
        assert repository.files == {} or is_whole(repository.files, checkpoints / NAME)
    first_uploads, commits = set(hub.uploads), sum(len(repo.commits) for repo in hub.repositories.values())
    hub.faults.clear(), hub.uploads.clear()
    assert push(checkpoints) == 0
    assert first_uploads.isdisjoint(hub.uploads)
    assert len(set(hub.uploads)) == len(hub.uploads)
    assert [is_whole(hub.repositories["model", repo_id].files, checkpoints / NAME) for repo_id in REPO_IDS] == [
        True
    ] * 2
    assert all(len(repository.commits) == 2 for repository in hub.repositories.values())
    assert commits <= 4


@pytest.mark.parametrize("action", ["cut", "cut-reply", 429, 500, 503])
@pytest.mark.parametrize("kind", [kind for kind in PUSH_REQUESTS if "collection" not in kind])
def test_trouble_that_passes_at(kind, action, hub, checkpoints, waits):
    headers = {"Retry-After": "7"} if action == 429 else {}
    hub.faults = [Fault(kind, action, times=2, headers=headers)]
    assert push(checkpoints, variant=OTHER_NAME) == 0
    (repository,) = hub.repositories.values()
    assert is_whole(repository.files, checkpoints / OTHER_NAME) and len(repository.commits) == 2
    assert len(waits) >= (1 if action == "cut-reply" else 2)
    if action == 429:
        assert all(wait >= 7 for wait in waits)


@pytest.mark.parametrize("action", ["cut", "cut-reply", 429])
@pytest.mark.parametrize("kind", ["collection", "collection-item"])
def test_collection(kind, action, hub, waits):
    for repo_id in REPO_IDS:
        hub.create(repo_id)
    for fault in ([Fault(kind, action, times=2)], []):
        hub.faults = fault
        url = collect(HfApi(), "CCNet", "checkpoints", REPO_IDS, private=False)
    (collection,) = hub.collections.values()
    assert [item["id"] for item in collection["items"]] == REPO_IDS
    assert url == f"{hub.url}/collections/{collection['slug']}"
    assert waits


def test_somebody_else_commits_in_between(hub, checkpoints, waits, monkeypatch):
    """The commit is refused because its parent is not the newest one; the next attempt starts from that."""
    create_commit = HfApi.create_commit

    def interrupted(api, repo_id, *arguments, **keywords):
        repository = hub.repositories["model", repo_id]
        if len(repository.commits) == 1:
            repository.commit(
                repository.head.files | {"README.md": repository.head.files[".gitattributes"]}, "by hand"
            )
        return create_commit(api, repo_id, *arguments, **keywords)

    monkeypatch.setattr(HfApi, "create_commit", interrupted)
    assert push(checkpoints, variant=OTHER_NAME) == 0
    (repository,) = hub.repositories.values()
    assert [commit.title for commit in repository.commits] == ["initial commit", "by hand", "Publish with ccnet_hf"]
    assert hub.count("commit") == 2 and len(hub.uploads) == 1


@pytest.mark.parametrize(
    ("token", "namespace", "message"),
    [
        ("hf_expired", "me", "the Hub does not accept the token (expired or revoked?)"),
        ("", "me", "no token for the Hub: run `hf auth login` or set HF_TOKEN"),
        ("hf_read", "me", "the token of me may only read"),
        ("hf_write", "google", "me's token may not write to 'google', only to me, our-lab"),
    ],
)
def test_token_is_checked_first(token, namespace, message, hub, checkpoints, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    assert push(checkpoints, namespace=namespace) == 1
    assert message in complaint(capsys)
    assert {kind for kind, _ in hub.log} <= {"whoami"}


@pytest.mark.parametrize("kind", ["create", "preupload", "lfs-batch", "commit"])
def test_token_that_expires_on_the_way(kind, hub, checkpoints, waits, capsys):
    hub.faults = [Fault(kind, 401)]
    assert push(checkpoints) == 1
    assert "the Hub does not accept the token" in complaint(capsys)
    assert waits == []
    assert all(repository.files == {} for repository in hub.repositories.values())


def test_organisation_and_private(hub, checkpoints):
    assert push(checkpoints, "--private", namespace="our-lab") == 0
    assert all(repo.private and repo.id.startswith("our-lab/") for repo in hub.repositories.values())
    assert len(hub.repositories) == 2


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b"{}"},
        {"pytorch_model.bin": b"0", "README.md": b"---\nlicense: mit\n---\n"},
        {"training_log.jsonl": b"{}", "modeling_ccnet.py": b"# of a model that train.py has pushed"},
    ],
)
def test_name_is_taken(files, hub, checkpoints, capsys):
    repository = hub.create(REPO_IDS[0], files=files)
    before = repository.head
    assert push(checkpoints) == 1
    assert f"the name {REPO_IDS[0]} is taken: it holds {next(iter(files))}" in complaint(capsys)
    assert repository.head is before and hub.uploads == []


def test_private_is_not_put_into_a_public_repository(hub, checkpoints, capsys):
    repository = hub.create(REPO_IDS[0])
    assert push(checkpoints, "--private") == 1
    assert f"{REPO_IDS[0]} exists and is public" in complaint(capsys)
    assert repository.files == {}


def test_dry_run(hub, checkpoints, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert push(checkpoints, "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    headers = [line for line in lines if not line.startswith(" ")]
    assert [header.split(":")[0] for header in headers] == [f"model {repo_id}" for repo_id in REPO_IDS]
    size = (checkpoints / NAME / "model.safetensors").stat().st_size
    assert f"{size:,} model.safetensors".split() in [line.split() for line in lines]
    assert hub.log == []


def test_offline(hub, checkpoints, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push(checkpoints) == 1
    assert "offline mode is enabled" in complaint(capsys)


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif how == "no JSON":
        (folder / "preprocessor_config.json").write_text("{")
    elif how == "a list":
        (folder / "config.json").write_text("[]")
    elif how == "a field of a wrong type":
        (folder / "config.json").write_text(json.dumps(config | {"backbone_config": 5}))
    elif how == "a part is missing":
        weights.rename(folder / "model-00001-of-00002.safetensors")
        parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    elif how == "a broken index":
        weights.rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": [1]}))
    elif how == "another model":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "segformer"}))
    elif how == "R-101":
        config["backbone_config"]["depths"] = [3, 4, 23, 3]
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "other classes":
        labels = {"id2label": {"0": "road", "1": "sky"}, "label2id": {"road": 0, "sky": 1}}
        (folder / "config.json").write_text(json.dumps(config | labels))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "holds no config.json"),
        ("no weights", "holds no model.safetensors"),
        ("truncated weights", "model.safetensors cannot be read: "),
        ("no JSON", "preprocessor_config.json cannot be read: "),
        ("a list", "config.json cannot be read: it holds no object, but list"),
        ("a field of a wrong type", "config.json cannot be read: "),
        ("a part is missing", "model.safetensors.index.json names 'model-00002-of-00002.safetensors', which"),
        ("a broken index", "model.safetensors.index.json cannot be read: "),
        ("another model", "config.json: its model type is 'segformer', not 'ccnet'"),
        ("R-101", "backbone_config.depths is [3, 4, 23, 3] there and [3, 4, 6, 3] in the variant"),
        ("other classes", f"is not {NAME}'s: id2label is {{0: 'road', 1: 'sky'}} there"),
    ],
)
def test_wrong_folder(how, message, hub, checkpoints, tmp_path, capsys):
    shutil.copytree(checkpoints / NAME, tmp_path / NAME)
    damage(tmp_path / NAME, how)
    assert push(tmp_path) == 1
    assert message in complaint(capsys)
    assert hub.log == []


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("ccnet-r101-ade20k", "holds no folder ccnet-r101-ade20k-512x512-80k or ccnet-r101-ade20k"),
        ("ccnet-r18-ade20k", "unknown variant 'ccnet-r18-ade20k'"),
        ("ccnet-mobilenetv2-camvid", "names no published checkpoint that could be converted"),
    ],
)
def test_wrong_variant(variant, message, hub, checkpoints, capsys):
    assert push(checkpoints, variant=variant) == 1
    assert message in complaint(capsys)
    assert hub.log == []


def test_a_folder_may_have_the_short_name(hub, checkpoints, tmp_path):
    shutil.copytree(checkpoints / NAME, tmp_path / SHORT_NAME)
    assert push(tmp_path, variant=SHORT_NAME) == 0
    assert len(hub.repositories) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --variant, --all and --dataset"),
        (["--all", "--variant", NAME], "give one of --variant, --all and --dataset"),
        (["--all"], "need --checkpoints and --namespace"),
        (["--dataset", "data"], "--dataset needs --hub_dataset_id"),
        (["--dataset", "data", "--hub_dataset_id", "camvid"], "--hub_dataset_id must be namespace/name, got 'camvid'"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


class TestDataset:
    """A folder of parquet files with a card."""

    OWN_TERMS = "license: other\nlicense_name: camvid-terms\nlicense_link: http://example.org"

    @staticmethod
    def write(folder: Path, metadata: str | None = "license: cc-by-4.0") -> Path:
        """What prepare_dataset.py writes, with other columns; without a card for `None`."""
        (folder / "data").mkdir(parents=True)
        splits = ""
        for split in ("train", "test"):
            file = folder / f"data/{split}-00000-of-00001.parquet"
            with parquet_writer(file, pa.schema([(split, pa.int64())])) as writer:
                writer.write_table(pa.table({split: list(range(100))}))
            splits += f"  - name: {split}\n    num_examples: 100\n    num_bytes: {file.stat().st_size}\n"
        (folder / ".cache").mkdir()
        (folder / ".cache/note").write_text("not to be sent")
        if metadata is not None:
            card = f"---\n{metadata}\ndataset_info:\n  splits:\n{splits}---\n# Data\n"
            (folder / "README.md").write_text(card)
        return folder

    @staticmethod
    def push(folder: Path, *arguments: str) -> int:
        return main(["--dataset", str(folder), "--hub_dataset_id", "me/camvid", *arguments])

    def test_arrives_and_is_not_sent_again(self, hub, tmp_path):
        folder = self.write(tmp_path / "camvid")
        assert self.push(folder) == 0
        repository = hub.repositories["dataset", "me/camvid"]
        assert repository.files.keys() == {
            "README.md",
            "data/train-00000-of-00001.parquet",
            "data/test-00000-of-00001.parquet",
        }
        for path, content in repository.files.items():
            assert hashlib.sha256(content).digest() == hashlib.sha256((folder / path).read_bytes()).digest()
        hub.log.clear()
        assert self.push(folder) == 0
        assert not {kind for kind, _ in hub.log} & {"lfs-upload", "lfs-verify", "commit"}

    @pytest.mark.parametrize("kind", ["create", "lfs-upload", "commit"])
    def test_survives_a_cut(self, kind, hub, tmp_path, waits):
        folder = self.write(tmp_path / "camvid")
        hub.faults = [Fault(kind, "cut")]
        assert self.push(folder) == 1
        assert all(repository.files == {} for repository in hub.repositories.values())
        uploads = set(hub.uploads)
        hub.faults.clear(), hub.uploads.clear()
        assert self.push(folder) == 0
        assert uploads.isdisjoint(hub.uploads)
        assert len(hub.repositories["dataset", "me/camvid"].files) == 3

    def test_data_under_its_own_terms_stays_private(self, hub, tmp_path, capsys):
        folder = self.write(tmp_path / "camvid", self.OWN_TERMS)
        assert self.push(folder) == 1
        assert "under terms of its own (camvid-terms); it is pushed with --private only" in complaint(capsys)
        assert hub.log == []
        assert self.push(folder, "--private") == 0
        assert hub.repositories["dataset", "me/camvid"].private

    @pytest.mark.parametrize(
        ("card", "message"),
        [
            (None, "holds no README.md"),
            ("language: en", "states no license in its metadata"),
            ("license: other", "needs license_name and license_link"),
            ("license: [", "cannot be read"),
        ],
    )
    def test_wrong_card(self, card, message, hub, tmp_path, capsys):
        assert self.push(self.write(tmp_path / "camvid", card)) == 1
        assert message in complaint(capsys)
        assert hub.log == []

    def test_prepare_dataset_pushes_to_a_private_repository_only(self, hub, tmp_path):
        folder = self.write(tmp_path / "camvid", self.OWN_TERMS)
        assert push_dataset(folder, "me/camvid")
        assert len(hub.repositories["dataset", "me/camvid"].files) == 3
        assert hub.repositories["dataset", "me/camvid"].private
        assert not push_dataset(folder, "me/camvid")
        hub.create("me/public", "dataset")
        with pytest.raises(ValueError, match="me/public exists and is public"):
            push_dataset(folder, "me/public")

    def test_a_prepared_coco_arrives(self, hub, shared_dir, tmp_path):
        folder = tmp_path / "coco"
        prepare_dataset("coco", shared_dir / "fixtures" / "coco", folder, allow_incomplete=True)
        assert push_dataset(folder, "me/coco")
        names = [f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation")]
        files = {name: (folder / name).read_bytes() for name in ("README.md", *names)}
        assert hub.repositories["dataset", "me/coco"].files == files
        assert hub.repositories["dataset", "me/coco"].private
        assert main(["--dataset", str(folder), "--hub_dataset_id", "me/second", "--private"]) == 0
        assert hub.repositories["dataset", "me/second"].files == files

    @pytest.mark.parametrize("damage", ["empty", "cut", "missing", "other rows"])
    def test_incomplete_data_is_found_before_the_first_byte(self, damage, hub, tmp_path, capsys):
        folder = self.write(tmp_path / "camvid")
        file = folder / "data/train-00000-of-00001.parquet"
        if damage == "missing":
            file.unlink()
        elif damage == "other rows":
            with parquet_writer(file, pa.schema([("train", pa.int64())])) as writer:
                writer.write_table(pa.table({"train": list(range(99))}))
        else:
            file.write_bytes(b"" if damage == "empty" else file.read_bytes()[:-1])
        assert self.push(folder) == 1
        assert "train" in complaint(capsys)
        assert hub.log == []

    def test_no_data(self, hub, tmp_path, capsys):
        assert self.push(tmp_path) == 1
        assert "holds no parquet file" in complaint(capsys)

    def test_old_shards_would_become_part_of_it(self, hub, tmp_path, capsys):
        repository = hub.create("me/camvid", "dataset", files={"data/train-00000-of-00002.parquet": b"old"})
        before = repository.head
        assert self.push(self.write(tmp_path / "camvid")) == 1
        assert "it holds data/train-00000-of-00002.parquet" in complaint(capsys)
        assert repository.head is before
