"""Two folders, of images and of masks, become a dataset that trains."""

import os
import shutil
import unicodedata
import zipfile
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from huggingface_hub import DatasetCard

from ccnet_hf.data.preparation import folder as folder_module
from ccnet_hf.data.preparation import prepare as prepare_module
from ccnet_hf.data.preparation.card import dataset_repository
from ccnet_hf.data.preparation.folder import prepare_folder
from ccnet_hf.data.preparation.prepare import main
from ccnet_hf.errors import InputError


CLASSES = ["background", "crack"]
RED = (128, 0, 0)


def mask_of(name: str, values: tuple = (0, 1)) -> np.ndarray:
    """(12, 16) or (12, 16, 3): the second class in as many columns as the name has letters."""
    mask = np.zeros((12, 16, *np.shape(values[0])), np.uint8) + np.array(values[0], np.uint8)
    mask[:, : len(Path(name).stem)] = values[1]
    return mask


def write_pairs(folder: Path, names: list[str], values: tuple = (0, 1), suffix: str = "") -> dict[str, str]:
    """Images and masks in `folder`; returns the arguments that name them."""
    for name in names:
        image, mask = folder / "images" / f"{name}.jpg", folder / "masks" / f"{name}{suffix}.png"
        for file in (image, mask):
            file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (16, 12), (50, 100, 150)).save(image)
        PIL.Image.fromarray(mask_of(name, values)).save(mask)
    return {"images": folder / "images", "masks": folder / "masks", "output_dir": folder / "out", "classes": CLASSES}


def rows(folder: Path, split: str) -> dict[str, np.ndarray]:
    """The label maps of a split, by name."""
    dataset = datasets.Dataset.from_parquet(
        str(folder / "data" / f"{split}-*.parquet"), cache_dir=str(folder / "cache")
    )
    return {row["name"]: np.asarray(row["label"]) for row in dataset}


NAMES = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ((0, 1), {}),
        ((0, 255), {"mask_values": ["0", "255"]}),
        (((0, 0, 0), RED), {"mask_values": ["0,0,0", "128,0,0"]}),
    ],
)
def test_masks_of_every_kind_become_class_ids(tmp_path, values, options):
    arguments = write_pairs(tmp_path, NAMES, values)
    prepared = prepare_folder(**arguments, **options, validation_fraction=0.34)
    assert prepared.num_examples == {"train": 4, "validation": 2}
    found = rows(tmp_path / "out", "train") | rows(tmp_path / "out", "validation")
    assert sorted(found) == NAMES
    for name, label in found.items():
        np.testing.assert_array_equal(label, mask_of(name))


def test_the_folder_is_a_dataset_with_names_and_a_card(tmp_path):
    prepare_folder(**write_pairs(tmp_path, NAMES))
    dataset = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert dataset["train"].features["classes"].feature.names == CLASSES
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert "| 1 | crack |" in card.text and card.data.license is None and "official" not in card.text
    assert dataset_repository(tmp_path / "out", "me/mine").repo_id == "me/mine"


def test_the_same_names_give_the_same_splits_wherever_they_lie(tmp_path):
    here, there = (write_pairs(tmp_path / part, NAMES) for part in ("here", "there"))
    for arguments in (here, there):
        prepare_folder(**arguments, validation_fraction=0.34)
    drawn = [list(rows(tmp_path / part / "out", "validation")) for part in ("here", "there")]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2
    assert prepare_folder(**here, validation_fraction=0.34).num_kept_shards == 2


def test_subfolders_are_splits_and_common_folders_do_not_count(tmp_path):
    arguments = write_pairs(tmp_path, ["train/north/a", "train/bb", "val/ccc", "test/dddd"])
    for kind in ("images", "masks"):
        with zipfile.ZipFile(tmp_path / f"{kind}.zip", "w") as archive:
            for file in sorted((tmp_path / kind).rglob("*.*")):
                archive.write(file, Path("download", kind, file.relative_to(tmp_path / kind)))
        arguments[kind] = tmp_path / f"{kind}.zip"
    assert prepare_folder(**arguments).num_examples == {"train": 2, "validation": 1, "test": 1}
    assert list(rows(tmp_path / "out", "train")) == ["train/bb", "train/north/a"]


def test_one_folder_may_hold_both_where_masks_have_a_suffix(tmp_path):
    arguments = write_pairs(tmp_path, NAMES, suffix="_mask")
    for file in arguments["masks"].iterdir():
        file.rename(arguments["images"] / file.name)
    arguments["masks"] = arguments["images"]
    assert sum(prepare_folder(**arguments, mask_suffix="_mask").num_examples.values()) == len(NAMES)


def test_links_that_lead_nowhere_are_named(tmp_path):
    arguments = write_pairs(tmp_path, NAMES)
    for file in (arguments["images"] / "bb.jpg", arguments["masks"] / "bb.png"):
        file.unlink()
        file.symlink_to(tmp_path / "gone" / file.name)
    with pytest.raises(InputError, match=r"bb\.\w+ cannot be read: it is a link to \S+gone/bb\.\w+, where there"):
        prepare_folder(**arguments)
    prepared = prepare_folder(**arguments, skip_corrupt=True)
    assert sum(prepared.num_examples.values()) == len(NAMES) - 1 and "bb" in str(prepared.skipped)


def test_a_name_is_one_name_in_either_form_of_unicode(tmp_path):
    arguments = write_pairs(tmp_path, NAMES)
    forms = [unicodedata.normalize(form, "größe") for form in ("NFC", "NFD")]
    (arguments["images"] / "bb.jpg").rename(arguments["images"] / f"{forms[1]}.jpg")
    (arguments["masks"] / "bb.png").rename(arguments["masks"] / f"{forms[0]}.png")
    assert sum(prepare_folder(**arguments).num_examples.values()) == len(NAMES)
    (arguments["masks"] / "ccc.png").rename(arguments["masks"] / f"{forms[1]}.png")
    with pytest.raises(InputError, match="have the same name but for what it ends in, or how its letters are encoded"):
        prepare_folder(**arguments)


def test_what_does_not_fit_is_named(tmp_path):
    arguments = write_pairs(tmp_path, NAMES)
    (arguments["masks"] / "bb.png").unlink()
    (arguments["images"] / "ccc.jpg").unlink()
    with pytest.raises(InputError, match="1 image has no mask: bb; 1 mask has no image: ccc; --skip_corrupt"):
        prepare_folder(**arguments)
    prepared = prepare_folder(**arguments, skip_corrupt=True)
    assert sum(prepared.num_examples.values()) == len(NAMES) - 2 and len(prepared.skipped) == 2
    with pytest.raises(InputError, match=r"no picture in .*images has a mask of its name in .*--mask_suffix"):
        prepare_folder(**arguments, mask_suffix="_label")


def test_a_value_of_no_class_is_named(tmp_path):
    arguments = write_pairs(tmp_path, NAMES)
    PIL.Image.fromarray(mask_of("a", (0, 7))).save(arguments["masks"] / "a.png")
    with pytest.raises(InputError, match=r"masks.a\.png: label id 7 is none of 0\.\.1, 255"):
        prepare_folder(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["crack"]}, "--classes takes 2 to 255 names, the background's among them; got 1"),
        ({"classes": ["a", "a"]}, "--classes names a class twice"),
        ({"classes": ["a", ""]}, "--classes takes names that can be seen, got ''"),
        ({"classes": [" \t", "a"]}, "--classes takes names that can be seen, got"),
        ({"classes": ["\u200b", "a"]}, "--classes takes names that can be seen, got"),
        ({"classes": ["a", "caf\udce9"]}, r"the name 'caf\\udce9' in --classes cannot be read: 'utf-8' codec"),
        ({"output_dir": "caf\udce9"}, "the name of caf.* cannot be read: 'utf-8' codec"),
        ({"mask_values": ["0"]}, "--mask_values has 1 value for 2 classes"),
        ({"mask_values": ["0", "1,2"]}, "take numbers from 0 to 255 or colours such as 128,0,0; got '1,2'"),
        ({"mask_values": ["0", "256"]}, "take numbers from 0 to 255 or colours such as 128,0,0; got '256'"),
        ({"mask_values": ["0", "0,0,0"]}, "are all numbers or all colours"),
        ({"mask_values": ["0", "0"]}, "none of them twice"),
        ({"ignored_values": ["1"]}, "none of them twice"),
        ({"validation_fraction": 1.0}, "--validation_fraction must be at most 0.9"),
        ({"images": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, options, message):
    arguments = write_pairs(tmp_path, ["a"]) | options
    with pytest.raises(InputError, match=message):
        prepare_folder(**arguments)
    assert not (tmp_path / "out" / "data").exists()


def test_the_command_says_which_class_no_mask_has(tmp_path, capsys):
    arguments = write_pairs(tmp_path, NAMES, (0, 255))
    words = ["--images", str(arguments["images"]), "--masks", str(arguments["masks"])]
    words += ["--output_dir", str(tmp_path / "out"), "--classes", *CLASSES]
    assert main(["folder", *words]) == 0
    assert "in no mask: crack (--mask_values says which value stands for which class)" in capsys.readouterr().out
    assert main(["folder", *words[:-3], "--classes", *CLASSES, "--mask_values", "0", "255"]) == 0
    output = capsys.readouterr().out
    assert "out holds the dataset: train 5, validation 1" in output and "in no mask" not in output


def test_the_command_says_what_was_kept_left_out_and_pushed(tmp_path, capsys, monkeypatch):
    arguments = write_pairs(tmp_path, NAMES)
    Path(arguments["images"], f"{NAMES[0]}.jpg").write_bytes(b"no image")
    words = ["--images", str(arguments["images"]), "--masks", str(arguments["masks"])]
    words += ["--output_dir", str(tmp_path / "out"), "--classes", *CLASSES, "--skip_corrupt"]
    pushed = []
    monkeypatch.setattr(folder_module, "check_token", lambda api, repo_id: None)
    monkeypatch.setattr(prepare_module, "publish", lambda api, repository, private: pushed.append(repository) or True)
    assert main(["folder", *words]) == 0
    assert "shard was kept" not in capsys.readouterr().out and not pushed
    assert main(["folder", *words, "--hub_dataset_id", "me/cracks"]) == 0
    kept, left_out, reason, last = capsys.readouterr().out.splitlines()[1:]
    assert kept == "1 finished shard was kept" and left_out == "1 example was left out:"
    assert f"{NAMES[0]}.jpg: " in reason and last == "me/cracks: published"
    assert [repository.repo_id for repository in pushed] == ["me/cracks"]


def test_help_tells_of_the_folder(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "For images and masks of your own: prepare_dataset.py folder --help" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    "text",
    [
        "# My pictures\n",
        "---\nconfigs: []\ndataset_info: {}\n---\n\n# A dataset of somebody else's\n",
        "# Notes\n\nWritten by `ccnet_hf` (`prepare_dataset.py folder`).\n",
        "",
    ],
)
def test_a_readme_of_somebody_else_stays(tmp_path, text, capsys):
    arguments = write_pairs(tmp_path, ["a", "bb"])
    arguments["output_dir"].mkdir()
    readme = arguments["output_dir"] / "README.md"
    readme.write_text(text)
    words = [word for name in ("images", "masks", "output_dir") for word in (f"--{name}", str(arguments[name]))]
    assert main(["folder", *words, "--classes", *CLASSES]) == 1
    assert capsys.readouterr().err == (
        f"error: {readme} is not the card of a prepared dataset; remove it or choose another --output_dir\n"
    )
    assert os.listdir(arguments["output_dir"]) == ["README.md"] and readme.read_text() == text
    readme.unlink()
    assert main(["folder", *words, "--classes", *CLASSES]) == 0
    assert main(["folder", *words, "--classes", *reversed(CLASSES)]) == 0  # a card of its own is replaced
    assert "| 0 | crack |" in readme.read_text()


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "gztar"])
def test_corrected_masks_of_equal_size_are_noticed(tmp_path, form):
    arguments = write_pairs(tmp_path, ["a", "bb"])
    folder = arguments["masks"]
    for file in folder.iterdir():
        PIL.Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()

    def prepare_again() -> int:
        if form != "folder":
            arguments["masks"] = shutil.make_archive(str(tmp_path / "packed"), form, folder)
        return prepare_folder(**arguments, validation_fraction=0.0).num_kept_shards

    assert [prepare_again(), prepare_again()] == [0, 1]
    corrected, state = folder / "bb.bmp", (folder / "bb.bmp").stat()
    PIL.Image.fromarray(mask_of("corrected")).save(corrected)
    os.utime(corrected, ns=(state.st_atime_ns, state.st_mtime_ns + 10**10))
    assert corrected.stat().st_size == state.st_size
    assert [prepare_again(), prepare_again()] == [0, 1]
    np.testing.assert_array_equal(rows(tmp_path / "out", "train")["bb"], mask_of("corrected"))


def test_classes_of_other_names_make_the_shards_anew(tmp_path):
    arguments = write_pairs(tmp_path, ["a", "bb"]) | {"validation_fraction": 0.0}
    prepare_folder(**arguments)
    assert prepare_folder(**arguments | {"classes": ["wall", "crack"]}).num_kept_shards == 0
    shard = str(tmp_path / "out" / "data" / "*.parquet")
    written = datasets.Dataset.from_parquet(shard, cache_dir=str(tmp_path / "cache"))
    assert written.features["classes"].feature.names == ["wall", "crack"]


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_name_that_is_no_text_is_named(tmp_path, form):
    """As of a file that was packed under another encoding."""
    arguments = write_pairs(tmp_path, ["a", "caf\udce9"])
    if form == "tar":
        for kind in ("images", "masks"):
            arguments[kind] = shutil.make_archive(str(tmp_path / kind), form, arguments[kind])
    with pytest.raises(InputError, match=r"^the name of .*caf.*cannot be read: 'utf-8' codec"):
        prepare_folder(**arguments)


def test_a_folder_whose_name_is_no_text_becomes_a_dataset(tmp_path):
    arguments = write_pairs(tmp_path, ["a", "bb"])
    arguments["images"] = arguments["images"].rename(tmp_path / "caf\udce9")
    assert prepare_folder(**arguments).num_examples == {"train": 1, "validation": 1}
    assert "# caf\ufffd" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("values", "mode", "options"),
    [(((0, 0, 0), RED), "RGBA", {"mask_values": ["0,0,0", "128,0,0"]}), ((0, 1), "LA", {})],
)
def test_an_alpha_channel_that_hides_nothing_does_not_count(tmp_path, values, mode, options):
    arguments = write_pairs(tmp_path, ["a", "bb"], values)
    for file in arguments["masks"].iterdir():
        PIL.Image.open(file).convert(mode).save(file)
    prepare_folder(**arguments, **options, validation_fraction=0.0)
    for name, label in rows(tmp_path / "out", "train").items():
        np.testing.assert_array_equal(label, mask_of(name))
    with PIL.Image.open(arguments["masks"] / "bb.png") as mask:
        mask.putpixel((5, 3), (*mask.getpixel((5, 3))[:-1], 254))
        mask.save(arguments["masks"] / "bb.png")
    with pytest.raises(InputError, match=r"bb\.png: the pixel at row 3, column 5 is transparent; save the label map"):
        prepare_folder(**arguments, **options)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (((0, 0, 0), RED), {}, "mode RGB .for masks of colours --mask_values takes the colour R,G,B of every class"),
        (
            (0, 255),
            {"mask_values": ["0,0,0", "255,255,255"]},
            r"label id 255 is none of 0\.\.1 .--mask_values takes numbers for masks of one channel",
        ),
    ],
)
def test_masks_of_the_other_kind_name_the_option(tmp_path, values, options, message):
    with pytest.raises(InputError, match=message):
        prepare_folder(**write_pairs(tmp_path, ["a", "bb"], values), **options)
