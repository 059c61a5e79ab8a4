"""Hostile input, drawn by seed: what disks, downloads, editors and strangers make of bytes and of JSON trees.

And its judge: every input has to be answered rightly or refused by one clear sentence.
"""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

from ccnet_hf.errors import InputError


# What was done to an input, and a function that hands it to the package and raises if the answer is wrong.
Case = tuple[str, Callable[[], object]]

LONGEST_SENTENCE = 2100  # characters


def unclear(sentence: str) -> bool:
    """Whether a message is more than one line, or none that a person reads."""
    return not sentence.strip() or "\n" in sentence or len(sentence) > LONGEST_SENTENCE or "Traceback" in sentence


def answer(case: Case) -> str | None:
    """What is wrong with the answer to a case, or `None`."""
    done, call = case
    try:
        call()
    except InputError as error:
        return f"{done}: unclear: {str(error)[:200]!r}" if unclear(str(error)) else None
    except Exception as error:
        return f"{done}: {type(error).__name__}: {str(error)[:200]}"
    return None


def check(cases: Iterator[Case]) -> None:
    answers = list(map(answer, cases))
    assert answers
    faults = [fault for fault in answers if fault is not None]
    assert not faults, f"{len(faults)} of {len(answers)}\n" + "\n".join(faults)


def hostile_bytes(content: bytes, seed: int, other: bytes = b"") -> tuple[str, bytes]:
    """What was done to a file, in words, and its content then.

    Args:
        content: of a file that is right.
        seed: of the draw; the same seed does the same.
        other: content of another file, for splices.
    """
    draw = random.Random(seed)
    place = draw.randrange(len(content) + 1)
    length = draw.choice((1, 4, 64, 1024, len(content) // 2))
    block = content[place : place + length]
    kind = draw.choice(("truncate", "flip", "flip", "zeros", "noise", "remove", "insert", "splice", "swap", "empty"))
    if kind == "truncate":
        changed = content[:place]
    elif kind == "flip":
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 8, 64))):
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "zeros":
        changed = content[:place] + bytes(len(block)) + content[place + len(block) :]
    elif kind == "noise":
        changed = content[:place] + draw.randbytes(len(block)) + content[place + len(block) :]
    elif kind == "remove":
        changed = content[:place] + content[place + length :]
    elif kind == "insert":
        changed = content[:place] + draw.randbytes(length) + content[place:]
    elif kind == "splice":
        changed = content[:place] + other[draw.randrange(len(other) + 1) :]
    elif kind == "swap":
        half = len(content) // 2
        changed = content[half:] + content[:half]
    else:
        changed = b""
    return f"{kind} at {place}, {length} bytes", bytes(changed)


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def hostile_values() -> list[Any]:
    """Values that a field of a configuration does not expect."""
    return [
        *(None, True, False, 0, 1, -1, 2, 3, 255, 256, 65_536, 2**31, 2**63, 10**30, -(10**30)),
        *(0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")),
        *("", "0", "1", "auto", "none", "\0", "../..", "x" * 10_000, "\ud800", "größe", "torch", "float64"),
        *([], [None], [0], [-1], [1, 2, 3], [10**9, 10**9], ["a"], [[1, 2], [3, 4]], [0.5, 0.5, 0.5], _nested(300)),
        *({}, {"a": 1}, {"0": "a", "1": "b"}, {"-1": "a"}, {"height": 10**9, "width": 10**9}, {"x": {"y": {}}}),
    ]


def paths(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to every value of a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in items:
        yield (*path, name)
        yield from paths(value, (*path, name))


def hostile_tree(tree: dict, seed: int, names: tuple[str, ...] = ()) -> tuple[str, Any]:
    """What was done to a JSON tree, in words, and the tree then: up to three values replaced, removed, moved or added.

    Args:
        tree: of a file that is right.
        seed: of the draw.
        names: further names that a file might have at its top.
    """
    draw = random.Random(seed)
    tree, done = copy.deepcopy(tree), []
    if draw.random() < 0.03:
        value = draw.choice(hostile_values())
        return f"all is {value!r:.60}", value
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        ways = list(paths(tree))
        if not ways:
            break
        *way, last = draw.choice(ways)
        parent = tree
        for name in way:
            parent = parent[name]
        kind = draw.choice(("replace", "replace", "replace", "remove", "move", "add"))
        value = draw.choice(hostile_values())
        if kind == "replace":
            parent[last] = value
        elif kind == "remove":
            parent.pop(last)
        elif kind == "move":
            *_, other = draw.choice(ways)
            value = parent.pop(last)
            tree[str(other)] = value
            last = (last, other)
        else:
            last = draw.choice(names or ("unknown",))
            tree[last] = value
        done.append(f"{kind} {[*way, last]} {value!r:.60}")
    return "; ".join(done), tree
