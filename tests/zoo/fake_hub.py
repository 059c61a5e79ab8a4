"""A Hub on loopback for the real `huggingface_hub` client: tokens, git-like commits, LFS, collections, and faults.

It answers as the Hub does without Xet: `xet` is never chosen as a transfer. Every commit holds a whole tree, so that
`repository.files` is exactly what a user would get. A fault hits every request of its kind until its count is used up.
"""

import base64
import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

import yaml
from fake_hub_store import Blob, Commit, Fault, Refusal, Repository
from file_server import LoopbackServer


# Every kind of request a push makes, in its order; a name per kind for faults and for the log.
PUSH_REQUESTS = (
    "whoami",
    "create",
    "info",
    "tree",
    "validate-yaml",
    "preupload",
    "lfs-batch",
    "lfs-upload",
    "lfs-verify",
    "commit",
    "collection",
    "collection-item",
)
REGULAR_LIMIT = 10 * 2**20
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin")


class FakeHub:
    """The server and what it stores. Use it as a context manager.

    Attributes:
        tokens: token -> (user, role, organisations the user may write to); a token that is not here has expired.
        repositories: (type, id) -> repository.
        collections: slug -> the collection as the Hub describes it.
        log: (kind, path) of every request.
        uploads: (repository, sha256) of every LFS object that came in whole, in order.
    """

    def __init__(self):
        self.tokens = {"hf_write": ("me", "write", ["our-lab"]), "hf_read": ("me", "read", [])}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.collections: dict[str, dict] = {}
        self.log: list[tuple[str, str]] = []
        self.uploads: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "FakeHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = LoopbackServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create(
        self, repo_id: str, type: str = "model", private: bool = False, files: dict | None = None
    ) -> Repository:
        """Put a repository there, with the commit a new one starts with and one more that holds `files`."""
        repository = self.repositories[type, repo_id] = Repository(repo_id, type, private)
        attributes = {".gitattributes": Blob(b"*.safetensors filter=lfs\n", is_lfs=False)}
        repository.commit(attributes, "initial commit")
        if files:
            repository.commit(attributes | {path: Blob(content, False) for path, content in files.items()}, "by hand")
        return repository

    def count(self, kind: str) -> int:
        return sum(logged == kind for logged, _ in self.log)

    def _fault(self, kind: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.kind == kind and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments) -> None:
        pass

    def _handle(self) -> None:
        self.path, _, _ = self.path.partition("?")
        kind, answer, arguments = self._route()
        self.hub.log.append((kind, self.path))
        fault = self.hub._fault(kind)
        if fault and fault.action == "cut":
            self._cut(kind)
            return
        self.content = self._read_body()
        try:
            if fault and isinstance(fault.action, int):
                # Behind the 5xx is a gateway, which knows no JSON.
                body = b"<html>Bad Gateway</html>" if fault.action >= 500 else b'{"error": "not now"}'
                status, headers = fault.action, fault.headers
            else:
                with self.hub.lock:
                    status, body, headers = answer(*arguments)
        except Refusal as refusal:
            status, body = refusal.status, json.dumps(refusal.body).encode()
            headers = {"X-Error-Message": refusal.body["error"]}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
        if fault and fault.action == "cut-reply":
            self._close()
            return
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def _cut(self, kind: str) -> None:
        if kind == "lfs-upload":
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
        self._close()

    def _close(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _route(self):
        """The kind of the request, the method that answers it and its arguments."""
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match parts:
            case ["api", "whoami-v2"]:
                return "whoami", self._whoami, ()
            case ["api", "repos", "create"]:
                return "create", self._create, ()
            case ["api", "validate-yaml"]:
                return "validate-yaml", self._validate_yaml, ()
            case ["api", "collections"]:
                return "collection", self._create_collection, ()
            case ["api", "collections", *slug, "items"]:
                return "collection-item", self._add_collection_item, ("/".join(slug),)
            case ["api", "collections", *slug]:
                return "collection", self._get_collection, ("/".join(slug),)
            case ["api", ("models" | "datasets") as types, namespace, name, *rest]:
                repository = (types.removesuffix("s"), f"{namespace}/{name}")
                match rest:
                    case [] | ["revision", _]:
                        return "info", self._info, (repository, *rest[1:])
                    case ["tree", revision, *_]:
                        return "tree", self._tree, (repository, revision)
                    case ["preupload", "main"]:
                        return "preupload", self._preupload, (repository,)
                    case ["commit", "main"]:
                        return "commit", self._commit, (repository,)
            case [*types, namespace, name, "info", "lfs", "objects", ("batch" | "verify") as what]:
                repository = (_type(types), f"{namespace}/{name.removesuffix('.git')}")
                return f"lfs-{what}", self._lfs_batch if what == "batch" else self._lfs_verify, (repository,)
            case ["lfs", type_, namespace, name, oid]:
                return "lfs-upload", self._lfs_upload, ((type_, f"{namespace}/{name}"), oid)
            case ["datasets", namespace, name, "resolve", revision, *path]:
                return "resolve", self._resolve, (("dataset", f"{namespace}/{name}"), revision, "/".join(path))
            case [namespace, name, "resolve", revision, *path]:
                return "resolve", self._resolve, (("model", f"{namespace}/{name}"), revision, "/".join(path))
            case ["cdn", type_, namespace, name, oid]:
                return "cdn", self._cdn, ((type_, f"{namespace}/{name}"), oid)
        return "unknown", self._unknown, ()

    def _unknown(self):
        raise Refusal(404, f"no such address: {self.command} {self.path}")

    # Who asks, and for what

    def _user(self) -> tuple[str, str, list[str]]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise Refusal(401, "Invalid username or password.")
        return self.hub.tokens[token]

    def _may_write(self, namespace: str) -> None:
        user, role, organisations = self._user()
        if role != "write" or namespace not in (user, *organisations):
            raise Refusal(403, f"You don't have the rights to write to the namespace {namespace!r}")

    def _repository(self, key: tuple[str, str], write: bool = False) -> Repository:
        if write:
            self._may_write(key[1].split("/")[0])
        repository, anonymous = self.hub.repositories.get(key), "Authorization" not in self.headers
        user, _, organisations = (None, None, []) if anonymous else self._user()
        if repository is None or (repository.private and repository.id.split("/")[0] not in (user, *organisations)):
            raise Refusal(401 if anonymous else 404, "Repository not found", "RepoNotFound")
        return repository

    def _revision(self, repository: Repository, revision: str = "main") -> Commit:
        for commit in repository.commits:
            if revision == commit.oid:
                return commit
        if revision != "main":
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository.head

    def _whoami(self):
        user, role, organisations = self._user()
        return _json(
            {
                "type": "user",
                "name": user,
                "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in organisations],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
            }
        )

    # Repositories

    def _create(self):
        asked = json.loads(self.content)
        user, _, _ = self._user()
        namespace = asked.get("organization") or user
        self._may_write(namespace)
        type_, repo_id = asked.get("type") or "model", f"{namespace}/{asked['name']}"
        url = f"{self.hub.url}/{'' if type_ == 'model' else type_ + 's/'}{repo_id}"
        if (type_, repo_id) in self.hub.repositories:
            raise Refusal(409, f"You already created this {type_} repo", url=url)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.create(repo_id, type_, private)
        return _json({"url": url, "name": repo_id})

    def _info(self, key, revision="main"):
        repository = self._repository(key)
        commit = self._revision(repository, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        return _json(
            {"id": repository.id, "sha": commit.oid, "private": repository.private, "siblings": siblings, "tags": []}
        )

    def _tree(self, key, revision):
        files = []
        for path, blob in sorted(self._revision(self._repository(key), revision).files.items()):
            lfs = {"lfs": {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}} if blob.is_lfs else {}
            files.append({"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid, **lfs})
        return _json(files)

    def _validate_yaml(self):
        self._user()
        self._check_card(json.loads(self.content)["content"])
        return _json({"errors": [], "warnings": []})

    def _check_card(self, content: str) -> None:
        _, _, rest = content.partition("---\n")
        try:
            metadata = yaml.safe_load(rest.partition("\n---")[0])
        except yaml.YAMLError:
            metadata = None
        if not content.startswith("---\n") or not isinstance(metadata, dict):
            errors = [{"message": "the metadata is no YAML mapping"}]
            raise Refusal(400, "Invalid metadata", errors=errors, warnings=[])

    def _preupload(self, key):
        repository = self._repository(key, write=True)
        files = []
        for file in json.loads(self.content)["files"]:
            path, binary = file["path"], b"\0" in base64.b64decode(file["sample"])
            is_lfs = path.endswith(LFS_SUFFIXES) or binary or file["size"] > REGULAR_LIMIT
            files.append({"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False})
            if path in repository.head.files:
                blob = repository.head.files[path]
                files[-1]["oid"] = blob.sha256 if blob.is_lfs else blob.oid
        return _json({"files": files, "commitOid": repository.head.oid})

    def _lfs_batch(self, key):
        repository = self._repository(key, write=True)
        asked = json.loads(self.content)
        if asked["operation"] != "upload" or "basic" not in asked["transfers"] or asked["hash_algo"] != "sha256":
            raise Refusal(422, "only basic uploads with sha256 are supported")
        objects = []
        for item in asked["objects"]:
            objects.append({"oid": item["oid"], "size": item["size"]})
            if item["oid"] not in repository.lfs:
                prefix = "" if repository.type == "model" else f"{repository.type}s/"
                objects[-1]["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{repository.type}/{repository.id}/{item['oid']}"},
                    "verify": {"href": f"{self.hub.url}/{prefix}{repository.id}.git/info/lfs/objects/verify"},
                }
        body = json.dumps({"transfer": "basic", "objects": objects}).encode()
        return 200, body, {"Content-Type": "application/vnd.git-lfs+json"}

    def _lfs_upload(self, key, oid):
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise Refusal(400, "the content does not have the hash it was announced with")
        self.hub.repositories[key].lfs[oid] = self.content
        self.hub.uploads.append((key[1], oid))
        return _json({})

    def _lfs_verify(self, key):
        asked = json.loads(self.content)
        if len(self._repository(key, write=True).lfs.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(422, "the object is missing or has another size")
        return _json({})

    def _commit(self, key):
        repository = self._repository(key, write=True)
        header, *operations = [json.loads(line) for line in self.content.splitlines()]
        if header["value"].get("parentCommit", repository.head.oid) != repository.head.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.head.files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
                if value["path"] == "README.md":
                    self._check_card(files["README.md"].content.decode())
            elif operation["key"] == "lfsFile":
                content = repository.lfs.get(value["oid"])
                if content is None or len(content) != value["size"]:
                    raise Refusal(400, f"LFS object {value['oid']} of {value['path']} was not uploaded")
                files[value["path"]] = Blob(content, is_lfs=True)
            else:
                raise Refusal(400, f"unknown operation {operation['key']}")
        if not operations:
            raise Refusal(400, "an empty commit")
        commit = repository.commit(files, header["value"]["summary"])
        url = f"{self.hub.url}/{repository.id}/commit/{commit.oid}"
        return _json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    # Downloads

    def _resolve(self, key, revision, path):
        repository = self._repository(key)
        commit = self._revision(repository, revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            return 404, b"Entry not found", headers | {"X-Error-Code": "EntryNotFound"}
        blob = commit.files[path]
        if not blob.is_lfs:
            return self._content(blob.content, headers | {"ETag": f'"{blob.oid}"'})
        # Large files come from another host, as on the Hub.
        location = f"{self.hub.url}/cdn/{repository.type}/{repository.id}/{blob.sha256}"
        linked = {"X-Linked-Size": str(len(blob.content)), "X-Linked-ETag": f'"{blob.sha256}"'}
        return 302, b"", headers | linked | {"Location": location.replace("127.0.0.1", "localhost")}

    def _cdn(self, key, oid):
        if "Authorization" in self.headers:
            raise Refusal(400, "the token was sent to another host")
        return self._content(self.hub.repositories[key].lfs[oid], {"ETag": f'"{oid}"'})

    def _content(self, content: bytes, headers: dict[str, str]):
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        asked = self.headers.get("Range")
        if not asked:
            return 200, content, headers
        start, _, end = asked.removeprefix("bytes=").partition("-")
        start, end = int(start), int(end) if end else len(content) - 1
        if start >= len(content):
            raise Refusal(416, "Range not satisfiable")
        part = content[start : end + 1]
        return 206, part, headers | {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"}

    # Collections

    def _create_collection(self):
        asked = json.loads(self.content)
        self._may_write(asked["namespace"])
        slug = f"{asked['namespace']}/{asked['title'].lower().replace(' ', '-')}-{'0123456789ab' * 2}"
        if slug in self.hub.collections:
            raise Refusal(409, "This collection exists already", slug=slug)
        self.hub.collections[slug] = {
            "slug": slug,
            "title": asked["title"],
            "description": asked.get("description"),
            "private": asked.get("private", False),
            "owner": asked["namespace"],
            "items": [],
            "lastUpdated": "2026-01-01T00:00:00.000Z",
            "position": 0,
            "theme": "blue",
            "upvotes": 0,
        }
        return _json(self.hub.collections[slug])

    def _get_collection(self, slug):
        if slug not in self.hub.collections:
            raise Refusal(404, "Collection not found")
        return _json(self.hub.collections[slug])

    def _add_collection_item(self, slug):
        self._may_write(slug.split("/")[0])
        item = json.loads(self.content)["item"]
        items = self.hub.collections[slug]["items"]
        if (item["type"], item["id"]) not in self.hub.repositories:
            raise Refusal(404, f"{item['id']} does not exist")
        if item["id"] in [known["id"] for known in items]:
            raise Refusal(409, "Item already in collection")
        items.append({"_id": f"{len(items):024x}", "position": len(items), **item})
        return _json(self.hub.collections[slug])


def _type(prefix: list[str]) -> str:
    return prefix[0].removesuffix("s") if prefix else "model"


def _json(value) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {}
