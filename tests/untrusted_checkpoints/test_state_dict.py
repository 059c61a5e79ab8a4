"""Foreign checkpoints: read, or refused in one sentence, whatever their bytes say; nothing in them is run."""

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from ccnet_hf.errors import InputError
from ccnet_hf.untrusted_checkpoints import read_state_dict


def saved(content, new_format=True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new_format)
    return file.getvalue()


# A pickle by hand, opcode by opcode, as no library would write it.


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def items(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + items(*arguments) + b"R"


def tensor(numbers=4, size=(4,), stride=(1,), offset=0) -> bytes:
    storage = items(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(numbers)) + b"Q"
    shape = (items(*map(number, values)) for values in (size, stride))
    hooks = called(name("collections", "OrderedDict"))
    return called(name("torch._utils", "_rebuild_tensor_v2"), storage, number(offset), *shape, b"\x89", hooks)


def checkpoint(value: bytes, storage=bytes(16), method=zipfile.ZIP_STORED) -> bytes:
    """A checkpoint that maps `weight` to what `value` makes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + text("weight") + value + b"s.")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", storage)
    return file.getvalue()


def test_the_hand_is_good_enough(tmp_path):
    (tmp_path / "x.pth").write_bytes(checkpoint(tensor(), struct.pack("<4f", 1, 2, 3, 4)))
    assert read_state_dict(tmp_path / "x.pth")["weight"].tolist() == [1, 2, 3, 4]


HOSTILE = {
    "storage of 10^12": (checkpoint(tensor(numbers=10**12)), "damaged|more than it has"),
    "storage of 2^62": (checkpoint(tensor(numbers=2**62)), "damaged"),
    "negative storage": (checkpoint(tensor(numbers=-4)), "damaged"),
    "10^12 of 4 numbers": (checkpoint(tensor(size=(10**12,))), "damaged"),
    "negative size": (checkpoint(tensor(size=(-4,))), "damaged"),
    "negative stride": (checkpoint(tensor(stride=(-1,))), "damaged"),
    "negative offset": (checkpoint(tensor(offset=-4)), "damaged"),
    "no storage": (checkpoint(called(name("torch", "FloatTensor"), number(10**8))), "more than it has"),
    "zeros": (checkpoint(called(name("builtins", "bytearray"), number(10**10))), "its pickle asks for bytearray"),
    "zeros of Python 2": (checkpoint(called(name("__builtin__", "bytearray"), number(10**10))), "asks for bytearray"),
    "compressed": (checkpoint(tensor(numbers=10**7), bytes(4 * 10**7), zipfile.ZIP_DEFLATED), "are not compressed"),
    "code": (checkpoint(called(name("os", "system"), text("true"))), "its pickle asks for os.system, and only"),
    "more code": (
        checkpoint(called(name("builtins", "exec"), text("1"))),
        "its pickle asks for (builtins.)?exec, and only",
    ),
    "nested": (checkpoint(b"]" * 100_000 + b"a" * 99_999), "is no plain tensor"),
    "a long name": (saved({"x" * 10_000_000: 1}), "is no plain tensor"),
    "sparse": (saved({"weight": torch.eye(3).to_sparse()}), "is no plain tensor"),
    "complex": (saved({"weight": torch.eye(3) * 1j}), "is no plain tensor"),
    "float8": (saved({"weight": torch.eye(3).to(torch.float8_e4m3fn)}), "is no plain tensor"),
    "in itself": (saved(OrderedDict(state_dict={"state_dict": {"weight": torch.eye(3)}})), "is no plain tensor"),
    "end of an archive": (b"PK\x05\x06" + bytes(18), "damaged"),
    "empty archive": (b"PK\x03\x04", "damaged"),
    "tar": (b"storages" + bytes(1000), "damaged"),
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
@pytest.mark.parametrize("case", HOSTILE)
def test_absurd_and_odd_content(case, tmp_path, recwarn):
    content, reason = HOSTILE[case]
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_state_dict(tmp_path / "x.pth")
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert not recwarn.list  # nothing beside the one line


def test_tensors_that_share_a_storage(tmp_path):
    storage = torch.arange(6.0)
    (tmp_path / "x.pth").write_bytes(saved({"a": storage[:3], "b": storage[2:], "c": torch.ones(1).expand(1000)}))
    found = read_state_dict(tmp_path / "x.pth")
    assert torch.equal(found["a"], storage[:3]) and torch.equal(found["b"], storage[2:]) and found["c"].sum() == 1000


@pytest.mark.parametrize("new_format", [True, False])
def test_damage_anywhere(new_format, tmp_path):
    """Seeded: cut off, bits and bytes changed, parts repeated."""
    weights = {f"backbone.{index}.weight": torch.randn(5, 5) for index in range(5)}
    whole = saved({"state_dict": OrderedDict(weights), "meta": {"a": [1, 2.5, None, "x"]}}, new_format)
    generator = random.Random(0)
    refused = 0
    for case in range(200):
        content = bytearray(whole)
        place = generator.randrange(len(content))
        if case % 4 == 0:
            content = content[:place]
        elif case % 4 == 1:
            content[place] ^= 1 << generator.randrange(8)
        elif case % 4 == 2:
            content[place : place + 4] = generator.randbytes(4)
        else:
            content[place:place] = content[: generator.randrange(600)]
        (tmp_path / "x.pth").write_bytes(content)
        try:
            read_state_dict(tmp_path / "x.pth")
        except InputError as error:
            assert str(tmp_path / "x.pth") in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 60


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_file(kind, tmp_path):
    if kind == "folder":
        (tmp_path / "x.pth").mkdir()
    with pytest.raises(InputError, match=r"no such file: .*x\.pth"):
        read_state_dict(tmp_path / "x.pth")
