# Copyright 2026 The authors of CCNet for Hugging Face. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Keywords that configurations and image processors would keep without effect although they look like one of theirs.

transformers takes any keyword, so that the files of other versions load. In Python a name that nearly is a field's is
a mistake; in a file it may be a field of a later version.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping

from transformers.utils import logging


logger = logging.get_logger(__name__)


def mistaken_names(
    names: Iterable[str], known: Collection[str], foreign: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The names that are not known but look like one that is, with what was probably meant.

    Args:
        names: of keywords.
        known: the names that have an effect.
        foreign: what users mean by some names of other libraries.
    """
    foreign, found = foreign or {}, {}
    for name in names:
        if name in known or name.startswith("_"):
            continue
        near = [name] if name in foreign else difflib.get_close_matches(name, [*known, *foreign], n=1, cutoff=0.8)
        if near:
            found[name] = foreign.get(near[0], near[0])
    return found


def refuse(kind: type, mistaken: Mapping[str, str]) -> None:
    """Raise ValueError if there are mistaken names among the keywords given to a class."""
    for name, meant in mistaken.items():
        raise ValueError(f"{kind.__name__} has no argument {name!r}; did you mean {meant}?")


def warn(kind: type, mistaken: Mapping[str, str]) -> None:
    """Say once of each mistaken name in a file that it has no effect."""
    for name, meant in mistaken.items():
        logger.warning_once(f"{name!r} in the file of a {kind.__name__} has no effect; did it mean {meant}?")


__all__ = ["mistaken_names", "refuse", "warn"]
