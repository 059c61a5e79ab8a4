"""A folder that `datasets` cannot read, or reads as something else, is one error naming it, whenever that shows."""

import json
import random
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_loading import LABEL, make_split

from ccnet_hf.data.loading import SegmentationDataset, load_split
from ccnet_hf.errors import InputError
from ccnet_hf.training.batches import StreamedBatches


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=[False, True], ids=["mapped", "streamed"])
def streaming(request) -> bool:
    return request.param


def read_all(folder: Path, streaming: bool) -> int:
    dataset = SegmentationDataset(load_split(str(folder), "train", streaming=streaming), 3, source=str(folder))
    return len(list(dataset.examples()))


def save(folder: Path, copies: int = 4) -> Path:
    make_split([LABEL] * copies, name=[f"p{index}" for index in range(copies)]).save_to_disk(str(folder))
    return folder


STATES = ["", "{", "[]", "null", "5", "{}", '{"_data_files": 5}', '{"_data_files": [{"filename": "gone.arrow"}]}']
INFOS = [
    "",
    "{",
    "[]",
    "5",
    '{"features": 5}',
    '{"features": {"image": {"_type": "Unknown"}}}',
    '{"features": {"image": {"_type": "Value"}}}',
    '{"features": {"image": {"dtype": "int64", "_type": "Value"}}}',
    '{"features": {"image": {"dtype": "nonsense", "_type": "Value"}}}',
]


@pytest.mark.parametrize(
    ("file", "content"), [("state.json", text) for text in STATES] + [("dataset_info.json", text) for text in INFOS]
)
def test_a_saved_folder_of_another_shape(tmp_path, streaming, file, content):
    folder = save(tmp_path / "saved")
    assert read_all(folder, streaming) == 4
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=r"saved cannot be read: "):
        read_all(folder, streaming)


def test_a_file_that_is_not_there_is_named(tmp_path):
    folder = save(tmp_path / "saved")
    (part,) = folder.glob("*.arrow")
    part.unlink()
    with pytest.raises(InputError, match=rf"saved cannot be read: no such file or directory: .*{part.name}"):
        read_all(folder, False)


@pytest.mark.parametrize("content", ["[]", "5", '{"splits": 5}', '{"splits": ["train", "gone"]}', "{"])
def test_a_saved_dict_of_another_shape(tmp_path, streaming, content):
    datasets.DatasetDict(train=make_split([LABEL])).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "dataset_dict.json").write_text(content)
    with pytest.raises(InputError, match="saved cannot be read: "):
        read_all(tmp_path / "saved", streaming)


def test_a_saved_split_without_rows_is_named(tmp_path, streaming):
    split = make_split([LABEL])
    datasets.DatasetDict(train=split, validation=split.select([])).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match="saved cannot be read: split validation has no rows"):
        read_all(tmp_path / "saved", streaming)
    split.select([]).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(InputError, match="one cannot be read: it has no rows"):
        read_all(tmp_path / "one", streaming)


def test_damage_anywhere_in_a_saved_file_is_named_and_harmless(tmp_path):
    """Its offsets are believed by whoever maps it into memory: a wrong one would end the process."""
    folder = save(tmp_path / "saved", copies=20)
    (file,) = folder.glob("*.arrow")
    whole, generator = file.read_bytes(), random.Random(0)
    answers = set()
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 3, 20])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        file.unlink()  # an earlier one is still mapped
        file.write_bytes(damaged[: generator.choice([len(damaged), generator.randrange(len(damaged))])])
        try:
            read_all(folder, False)
            answers.add("read")
        except InputError as error:
            answers.add("refused" if "saved cannot be read" in str(error) else "corrupt")
    assert "refused" in answers


FILES = {
    "train.parquet": b"PAR1 rubbish PAR1",
    "train.json": b"{",
    "train.csv": bytes(range(128, 256)),
    "README.md": b"---\na: [\n---\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_folder_of_damaged_files(tmp_path, streaming, name):
    folder = tmp_path / "data"
    folder.mkdir()
    if name == "README.md":
        make_split([LABEL]).to_parquet(folder / "train-00000-of-00001.parquet")
    (folder / name).write_bytes(FILES[name])
    with pytest.raises(InputError, match="data cannot be read: "):
        read_all(folder, streaming)


@pytest.mark.parametrize("about", ["dataset_info: 5", "configs: 7", "dataset_info:\n  features: 7"])
def test_a_card_of_another_shape(tmp_path, streaming, about):
    folder = tmp_path / "data"
    folder.mkdir()
    make_split([LABEL]).to_parquet(folder / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text(f"---\n{about}\n---\n")
    try:
        assert read_all(folder, streaming) == 1
    except InputError as error:
        assert "data cannot be read: " in str(error)


def test_damaged_pages_are_found_while_they_are_read(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    split = make_split([np.tile(LABEL, (20, 20))] * 24, name=[f"p{index}" for index in range(24)])
    file = folder / "train-00000-of-00001.parquet"
    pq.write_table(split.data.table, file, compression="zstd", row_group_size=4)
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)  # the footer is whole
    file.write_bytes(content)
    with pytest.raises(InputError, match="data cannot be read: "):
        load_split(str(folder), "train")
    stream = load_split(str(folder), "train", streaming=True)
    with pytest.raises(InputError, match=r"^street cannot be read: "):
        list(SegmentationDataset(stream, 3, source="street", skip_corrupt=True).examples())
    with pytest.raises(InputError, match=r"^street cannot be read: "):
        list(StreamedBatches(stream, 4, source="street", batch_size=1, start=0, stop=24))


def test_rows_that_cannot_be_decoded_are_found_while_they_are_read(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"image": {"other": 1}, "label": {"bytes": "text"}}]
    (folder / "train.json").write_text("\n".join(map(json.dumps, rows)))
    for streaming in (False, True):
        with pytest.raises(InputError, match=r"data cannot be read: |example 0.*: (cannot be read|there is no file)"):
            read_all(folder, streaming)


def test_images_may_be_bare_bytes(tmp_path, streaming):
    split = make_split([LABEL])
    for column in split.column_names:
        split = split.cast_column(column, datasets.Image(decode=False))
    encoded = {column: [value["bytes"]] for column, value in split[0].items()}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(encoded).to_parquet(tmp_path / "data" / "train.parquet")
    assert read_all(tmp_path / "data", streaming) == 1


@pytest.mark.parametrize("names", [[7], [["x"]], [None]], ids=str)
def test_names_that_are_no_text_are_left_alone(tmp_path, streaming, names):
    (tmp_path / "data").mkdir()
    make_split([LABEL]).add_column("name", names).to_parquet(tmp_path / "data" / "train.parquet")
    dataset = SegmentationDataset(load_split(str(tmp_path / "data"), "train", streaming=streaming), num_labels=3)
    assert [name for *_, name in dataset.examples()] == ["example 0"]


def test_what_is_no_dataset_is_named(tmp_path, streaming):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "gone"):
        with pytest.raises(InputError, match=f"{name} cannot be read: "):
            load_split(str(tmp_path / name), "train", streaming=streaming)
