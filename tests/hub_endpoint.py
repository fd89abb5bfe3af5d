"""A small hub of our own: what huggingface_hub asks one for when repos are made, written and read."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".png")
TOKEN = "letmein"


class Missing(Exception):
    """What is not there: the status and the code that clients read."""

    def __init__(self, code, status=404, **more):
        super().__init__(code)
        self.code, self.status, self.more = code, status, more


class Repo:
    """Its branches, each the name of a commit, and its commits, each the files of it."""

    def __init__(self, private):
        self.private = private
        self.commits, self.branches = {}, {}
        self.commit("main", {}, "initial commit")

    def commit(self, branch, files, message):
        name = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def find(self, revision):
        name = self.branches.get(revision, revision)
        if name not in self.commits:
            raise Missing("RevisionNotFound")
        return name


class Hub(ThreadingHTTPServer):
    """The hub: `repos` by name, `asked` the lines of all requests, `down` whether it fails at all of them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.large, self.asked, self.down = {}, {}, [], False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self):
        """The files that were read, by their names."""
        return sorted({line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line})


@contextlib.contextmanager
def running():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a head and a body go together, and nobody waits for an acknowledgement

    def log_message(self, *_):
        pass

    def answer(self):
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.asked.append(f"{self.command} /{'/'.join(path)}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if self.server.down:
                raise Missing("Down", 500)
            content, *more = self.found(path, body)
            self.reply(content, **(more[0] if more else {}))
        except Missing as missing:
            self.reply({"error": missing.code, **missing.more}, status=missing.status, **{"X-Error-Code": missing.code})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def reply(self, content, status=200, **headers):
        raw = isinstance(content, bytes)
        content = content if raw else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if raw else "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repo(self, name):
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self.known()):
            raise Missing("RepoNotFound")
        return repo

    def found(self, path, body):
        match path:
            case ["api", "repos", "create"]:
                return (self.created(json.loads(body)),)
            case ["api", "validate-yaml"]:
                return ({"errors": [], "warnings": []},)
            case ["api", "models", owner, name]:
                return (self.told(f"{owner}/{name}", "main"),)
            case ["api", "models", owner, name, "revision", revision]:
                return (self.told(f"{owner}/{name}", revision),)
            case ["api", "models", owner, name, "tree", revision, *_]:
                repo = self.repo(f"{owner}/{name}")
                return ([self.entry(*one) for one in repo.commits[repo.find(revision)].items()],)
            case ["api", "models", owner, name, "branch", branch]:
                repo = self.writable(f"{owner}/{name}")
                if branch in repo.branches:
                    raise Missing("Exists", 409)
                repo.branches[branch] = repo.branches["main"]
                return ({},)
            case ["api", "models", owner, name, "preupload", revision]:
                self.writable(f"{owner}/{name}").find(revision)
                files = [one["path"] for one in json.loads(body)["files"]]
                modes = [
                    {"path": one, "uploadMode": "lfs" if one.endswith(LARGE) else "regular", "shouldIgnore": False}
                    for one in files
                ]
                return ({"files": modes},)
            case ["api", "models", owner, name, "commit", revision]:
                return (self.committed(f"{owner}/{name}", revision, [json.loads(line) for line in body.splitlines()]),)
            case [owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                self.writable(f"{owner}/{name.removesuffix('.git')}")
                objects = [
                    {**one, "actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                return ({"transfer": "basic", "objects": objects},)
            case ["large", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                self.server.large[oid] = body
                return (b"",)
            case [owner, name, "resolve", revision, *file]:
                return self.resolved(self.repo(f"{owner}/{name}"), revision, "/".join(file))
        raise Missing(f"nothing is known of {path}", 501)

    def writable(self, name):
        if not self.known():
            raise Missing("Unauthorized", 401)
        return self.repo(name)

    def created(self, asked):
        if not self.known():
            raise Missing("Unauthorized", 401)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server.repos:
            raise Missing("Exists", 409, url=f"{self.server.url}/{name}")
        self.server.repos[name] = Repo(bool(asked.get("private") or asked.get("visibility") == "private"))
        return {"url": f"{self.server.url}/{name}", "name": name}

    def told(self, name, revision):
        repo = self.repo(name)
        commit = repo.find(revision)
        files = [{"rfilename": one} for one in repo.commits[commit]]
        return {
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": repo.private,
            "siblings": files,
            "tags": [],
            "downloads": 0,
        }

    def entry(self, path, content):
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return {**entry, "lfs": large} if path.endswith(LARGE) else entry

    def committed(self, name, revision, lines):
        repo = self.writable(name)
        files = dict(repo.commits[repo.find(revision)])
        message = ""
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repo.commit(revision, files, message)
        return {"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit, "pullRequestUrl": None}

    def resolved(self, repo, revision, file):
        commit = repo.find(revision)
        content = repo.commits[commit].get(file)
        if content is None:
            raise Missing("EntryNotFound")
        entry = self.entry(file, content)
        etag = entry.get("lfs", entry)["oid"]
        return content, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
