"""Files of `paddle.save`: true ones are read, anything else is refused in one sentence, and nothing in them is run."""

import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from golden_files import SMALL_SET
from hostile import check, hostile_bytes
from paddle_weights import key_shapes, paddle_state_dict, save_pdparams

from ccnet_hf.errors import InputError
from ccnet_hf.untrusted_checkpoints import read_state_dict


SAMPLES = sorted((SMALL_SET / "pdparams").glob("*.pdparams"))  # written by Paddle itself, 2.6.2 and 3.3.1

STATE_DICT = {
    "weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bias": np.array([1.5, -2.0]),
    "gamma": np.array(0.5, dtype=np.float16),
    "steps": np.array([7]),
    "turned": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "a name of more than 255 characters" * 8: np.zeros((2, 1), dtype=np.float32),
}


def test_there_are_six_samples():
    assert len(SAMPLES) == 6


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.stem)
def test_files_of_paddle(file):
    """Their nine entries are CCNet's of five classes."""
    found = read_state_dict(file)
    shapes = dict(key_shapes(5))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {name: shapes[name] for name in found}
    assert len(found) == 9 and all(tensor.dtype == torch.float32 for tensor in found.values())
    assert found["head.cca.gamma"].tolist() == pytest.approx([0.7])
    assert found["head.out.conv.bias"].abs().sum() > 0


def test_numbers_of_a_file_of_paddle():
    found, expected = read_state_dict(SAMPLES[0]), paddle_state_dict(5)
    for name, tensor in found.items():
        assert np.array_equal(tensor, expected[name]), name


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_kinds_shapes_and_names(protocol, tmp_path):
    save_pdparams(STATE_DICT, tmp_path / "x.pdparams", protocol)
    found = read_state_dict(tmp_path / "x.pdparams")
    assert list(found) == list(STATE_DICT)
    for name, array in STATE_DICT.items():
        assert found[name].numpy().dtype == array.dtype and np.array_equal(found[name], array), name


def test_one_array_under_several_names(tmp_path):
    """Pickled once. Each name gets a tensor of its own, unless the file would grow by that."""
    save_pdparams(dict.fromkeys(("a", "b"), np.ones(3, dtype=np.float32)), tmp_path / "x.pdparams")
    found = read_state_dict(tmp_path / "x.pdparams")
    found["a"].zero_()
    assert found["b"].sum() == 3
    save_pdparams(dict.fromkeys("abc", np.ones(10_000)), tmp_path / "x.pdparams")
    with pytest.raises(InputError, match="its arrays claim 240,000 bytes, more than it has"):
        read_state_dict(tmp_path / "x.pdparams")


class Called:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Changed:
    """Pickled as a name with a state that is put on what it stands for."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return np.array(0.0).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


# Two tuples of twice the one before: sixty of them take the age of the universe to hash.
_DOUBLED = b")" + b"\x94" + b"".join(b"h%c" % (index,) * 2 + b"\x86\x94" for index in range(60))

FLOATS = np.dtype("f4")
HOSTILE = {
    "code": (pickle.dumps({"a": Called(os.system, "true")}), r"asks for \w+\.system, and only arrays"),
    "evaluation": (pickle.dumps({"a": Called(eval, "1")}), "asks for builtins.eval, and only arrays"),
    "code in protocol 2": (pickle.dumps({"a": Called(eval, "1")}, protocol=2), "asks for __builtin__.eval, and only"),
    "another function of NumPy": (pickle.dumps({"a": np.float32(1)}), "asks for numpy.*scalar, and only arrays"),
    "another dictionary": (pickle.dumps(OrderedDict(a=np.ones(2))), "asks for collections.OrderedDict, and only"),
    "an attribute of a name": (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", "asks for numpy.dtype.__init__"),
    "a call of ndarray": (opcodes(b"cnumpy\nndarray\n", b")R"), "calls a class that arrays only name"),
    "a changed name": (opcodes(b"cnumpy\ndtype\n", b"}" + text("a") + b"NsNN\x86b"), "damaged"),
    "a state of a name": (opcodes(b"cnumpy\ndtype\n", b"Nb"), "changes what it only asked for"),
    "another encoding": (opcodes(b"c_codecs\nencode\n", text("a") + text("utf-8") + b"\x86R"), "encodes text that no"),
    "an object array": (pickle.dumps({"a": np.array([None, "x"])}), "uses EMPTY_LIST"),
    "text": (pickle.dumps({"a": np.array(["x"])}), "array of type 'U1'"),
    "big endian": (pickle.dumps({"a": np.ones(2, dtype=">f4")}), "byte order '>'"),
    "complex": (pickle.dumps({"a": np.ones(2) * 1j}), "array of type 'c16'"),
    "too few bytes": (pickle.dumps({"a": Changed((1, (9,), FLOATS, False, bytes(8)))}), r"shape \(9,\) in 8 bytes"),
    "a negative side": (pickle.dumps({"a": Changed((1, (-1, -2), FLOATS, False, bytes(8)))}), r"shape \(-1, -2\)"),
    "a side of 2^31": (pickle.dumps({"a": Changed((1, (2**31 - 1,), FLOATS, False, b""))}), "in 0 bytes"),
    "text for bytes": (pickle.dumps({"a": Changed((1, (1,), FLOATS, False, "abcd"))}), "something else than numbers"),
    "no type": (pickle.dumps({"a": Changed((1, (1,), None, False, bytes(4)))}), "something else than numbers"),
    "a list": (pickle.dumps([np.ones(2)]), "uses EMPTY_LIST"),
    "nested": (pickle.dumps({"model": {"a": np.ones(2)}}), "entry 'model' is no array"),
    "a number": (pickle.dumps({"iter": 3}), "entry 'iter' is no array"),
    "no name": (pickle.dumps({3: np.ones(2)}), "entry 3 is no array"),
    "no dictionary": (pickle.dumps(3), "holds no dictionary"),
    "nothing": (pickle.dumps({}), "holds no state dict"),
    "no content": (opcodes(b"}" + text("a"), pickle.dumps(Changed(None))[2:-1], b"s"), "entry 'a' is no array"),
    "names that are none": (pickle.dumps({"StructuredToParameterName@@": {"a": 1}}), "maps no names to names"),
    "a far memory": (opcodes(b"}r\xff\xff\xff\x7f"), "remembers object 2147483647 after 0 others"),
    "a doubled tuple": (opcodes(_DOUBLED), "uses a tuple more than once"),
    "a PyTorch file": (b"PK\x03\x04" + bytes(100), "damaged or no file of Paddle's parameters"),
    "empty": (b"", "damaged or no file of Paddle's parameters"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_refused(case, tmp_path, recwarn):
    content, reason = HOSTILE[case]
    (tmp_path / "x.pdparams").write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_state_dict(tmp_path / "x.pdparams")
    assert "x.pdparams" in str(caught.value) and len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert not recwarn.list


def test_text_that_is_encoded_again_and_again(tmp_path):
    """Protocol 2 has bytes as text, and a pickle may ask for the bytes of one text a thousand times."""
    name, arguments = b"c_codecs\nencode\nq\x00", b"(" + text("x" * 1000) + b"q\x01" + text("latin1") + b"q\x02t"
    again = b"".join(b"h\x00(h\x01h\x02tR" for _ in range(1000))
    (tmp_path / "x.pdparams").write_bytes(b"\x80\x02" + name + arguments + b"R" + again + b".")
    with pytest.raises(InputError, match="encodes text that no"):
        read_state_dict(tmp_path / "x.pdparams")


@pytest.mark.parametrize("protocol", [2, 4])
def test_damage_anywhere(protocol, tmp_path):
    file = tmp_path / "x.pdparams"
    save_pdparams(STATE_DICT, file, protocol)
    whole = file.read_bytes()

    def cases():
        for seed in range(200):
            done, content = hostile_bytes(whole, seed, other=SAMPLES[0].read_bytes())
            yield done, lambda content=content: (file.write_bytes(content), read_state_dict(file))

    check(cases())
