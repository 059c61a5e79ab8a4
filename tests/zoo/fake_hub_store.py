"""What the fake Hub stores and what may befall it: repositories with their commits, faults, refusals."""

import hashlib
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to the next `times` requests of a kind.

    `action` is `"cut"` (the connection breaks before the request is handled, an upload in the middle of its body),
    `"cut-reply"` (it is handled, and the reply is lost), or a status code.
    """

    kind: str
    action: str | int
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Blob:
    """A file of a commit; large ones are LFS objects."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """The git object id, of the pointer if it is an LFS file."""
        content = self.content
        if self.is_lfs:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    oid: str
    parent: str | None
    files: dict[str, Blob]
    title: str


@dataclass
class Repository:
    id: str
    type: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    lfs: dict[str, bytes] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], title: str) -> Commit:
        parent = self.commits[-1].oid if self.commits else None
        tree = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        self.commits.append(
            Commit(hashlib.sha1(f"{parent} {title}\n{tree}".encode()).hexdigest(), parent, files, title)
        )
        return self.commits[-1]

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """What the newest commit holds, without the file that the Hub adds."""
        return {path: blob.content for path, blob in self.head.files.items() if path != ".gitattributes"}


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        self.status, self.code, self.body = status, code, {"error": message, **body}
