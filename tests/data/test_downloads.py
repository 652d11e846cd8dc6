import http.server
import io
import stat
import threading
import time
import zipfile

import kagglesdk.kaggle_env
import pytest
from conftest import CLASSES, save_image

from fruitveg_tl.data import grocery, kaggle, registry
from fruitveg_tl.utils.errors import InputError


@pytest.fixture
def server():
    """A server on this machine that answers every path with the same bytes."""
    # length: what the header says if not the truth; pause: seconds between quarters of the body
    state = {"body": b"", "status": 200, "asked": [], "length": None, "pause": None}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state["asked"].append(self.path)
            # A connection closed over an unread request is reset, whatever was answered.
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(state["status"])
            self.send_header("Content-Length", str(state["length"] or len(state["body"])))
            self.end_headers()
            body = state["body"]
            pieces = 1 if state["pause"] is None else 4
            for i in range(pieces):
                self.wfile.write(body[i * len(body) // pieces : (i + 1) * len(body) // pieces])
                time.sleep(state["pause"] or 0)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state["address"] = f"http://127.0.0.1:{httpd.server_port}"
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield state
        httpd.shutdown()


@pytest.fixture
def archive(tmp_path):
    """A miniature of GitHub's archive of the Grocery Store Dataset, with what is not wanted."""
    top = tmp_path / "made" / "GroceryStoreDataset-master"
    rows, lines = ["name,id,coarse,coarse id,x,y"], {"train": [], "val": [], "test": []}
    for number, folder in enumerate(("Fruit/Kiwi", "Vegetables/Leek", "Packages/Milk")):
        name = folder.split("/")[1]
        rows.append(f"{name},{number},{name},{number},/i,/d")
        for split, split_lines in lines.items():
            path = f"{split}/{folder}/{name}.jpg"
            save_image(top / "dataset" / path, number, len(split))
            split_lines.append(f"{path}, {number}, {number}")
    for split, split_lines in lines.items():
        (top / "dataset" / f"{split}.txt").write_text("\n".join(split_lines))
    (top / "dataset" / "classes.csv").write_text("\n".join(rows))
    (top / "README.md").write_text("upstream")
    file = tmp_path / "archive.zip"
    with zipfile.ZipFile(file, "w") as target:
        for path in sorted(top.rglob("*")):
            target.write(path, path.relative_to(top.parent))
    return file, grocery.content_sha256(top / "dataset")


@pytest.fixture
def upstream(monkeypatch, server, archive, home):
    monkeypatch.setattr(grocery, "GROCERY_URL", f"{server['address']}/master.zip")
    monkeypatch.setattr(grocery, "GROCERY_SHA256", archive[1])
    server["body"] = archive[0].read_bytes()
    return server


def test_grocery_is_fetched_checked_unpacked_and_kept(upstream, home):
    dataset = registry.load("grocery")
    assert dataset.classes == ("Kiwi", "Leek")
    assert dataset.split_sizes() == {"train": 2, "val": 2, "test": 2}
    root = home / "data" / "grocery"
    assert not list(root.rglob("*Milk*"))
    assert not list(home.rglob("*.zip"))
    registry.load("grocery")
    assert len(upstream["asked"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"status": 404},
        {"status": 500},
        {"length": 10**6},  # and then the connection ends
        {"length": 999},
        {"body": b"no zip"},
        {"body": b""},
        {"pause": 1.5},
    ],
    ids=["404", "500", "cut", "too short", "wrong bytes", "nothing", "silent"],
)
@pytest.mark.reliability("downloads that fail, then work")
def test_a_failed_download_leaves_nothing_and_the_next_one_works(
    upstream, home, change, monkeypatch
):
    monkeypatch.setattr(grocery, "TIMEOUT", 0.5)
    good = dict(upstream)
    upstream.update(change)
    with pytest.raises(InputError, match=r"grocery: the download.*FRUITVEG_DATA"):
        registry.load("grocery")
    assert not (home / "data" / "grocery").exists()
    upstream.update({key: good[key] for key in change})
    assert len(registry.load("grocery").index) == 6


@pytest.mark.reliability("downloads that fail, then work")
def test_a_slow_server_is_waited_for(upstream, home):
    upstream["pause"] = 0.3
    assert len(registry.load("grocery").index) == 6


@pytest.mark.reliability("downloads that fail, then work")
def test_an_absent_server_is_named(upstream, home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(grocery, "GROCERY_URL", "http://127.0.0.1:9/master.zip")
        with pytest.raises(InputError, match=r"127\.0\.0\.1:9.*failed.*FRUITVEG_DATA") as caught:
            registry.load("grocery")
    assert "\n" not in str(caught.value)
    assert len(registry.load("grocery").index) == 6


def link(name: str) -> zipfile.ZipInfo:
    """A symbolic link as zip programs store it."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


TOP = "GroceryStoreDataset-master/dataset"


@pytest.mark.parametrize(
    ("member", "content", "named"),
    [
        ("/etc/escaped.txt", b"x", "'/etc/escaped.txt'"),
        (f"{TOP}/../../../escaped.txt", b"x", "escaped.txt"),
        ("../escaped.txt", b"x", "escaped.txt"),
        (link(f"{TOP}/train.txt"), b"/etc/passwd", "train.txt"),
        (link(f"{TOP}/train/Fruit"), b"../../../..", "Fruit"),
        (f"{TOP}/train/Fruit/Kiwi/bomb.jpg", bytes(30_000_000), "30,0"),
    ],
    ids=["absolute", "parent", "parent at the top", "link", "linked folder", "bomb"],
)
@pytest.mark.reliability("hostile archives")
def test_hostile_archives_are_refused_whole(
    upstream, home, tmp_path, monkeypatch, member, content, named
):
    monkeypatch.setattr(grocery, "UNPACKED_LIMIT", 10_000_000)
    file = tmp_path / "hostile.zip"
    file.write_bytes(upstream["body"])
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as target:
        target.writestr(member, content)
    upstream["body"] = file.read_bytes()
    with pytest.raises(InputError, match="archive is unsafe") as caught:
        registry.load("grocery")
    assert named in str(caught.value)
    assert not list(tmp_path.rglob("escaped*")) and not list(home.rglob("*.jpg"))


def test_other_content_than_the_pinned_one_is_refused(upstream, home, monkeypatch):
    monkeypatch.setattr(grocery, "GROCERY_SHA256", "0" * 64)
    with pytest.raises(InputError, match="its content has SHA-256"):
        registry.load("grocery")
    assert not (home / "data" / "grocery").exists()


@pytest.fixture
def kaggle_server(monkeypatch, server, tmp_path):
    """Point kagglehub's own client at the server."""
    environments = kagglesdk.kaggle_env._env_to_endpoint
    monkeypatch.setitem(environments, kagglesdk.kaggle_env.KaggleEnv.LOCAL, server["address"])
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    # With the version in the handle kagglehub asks for nothing but the archive.
    monkeypatch.setattr(kaggle, "KAGGLE_HANDLE", kaggle.KAGGLE_HANDLE + "/versions/8")
    return server


def test_kaggle_set_comes_through_kagglehub(kaggle_server, images, home):
    kaggle_server["body"] = zipped(images)
    dataset = registry.load("fruits-veges")
    assert dataset.classes == CLASSES and len(dataset.index) == 45
    assert any("DownloadDataset" in path or "download" in path for path in kaggle_server["asked"])


@pytest.mark.parametrize("change", [{"length": 10**6}, {"body": b"no zip"}, {"status": 500}])
@pytest.mark.reliability("downloads that fail, then work")
def test_a_failed_kaggle_download_is_never_half_a_dataset(kaggle_server, images, home, change):
    kaggle_server["body"] = zipped(images)
    good = dict(kaggle_server)
    kaggle_server.update(change)
    with pytest.raises(InputError, match=r"fruits-veges.*FRUITVEG_DATA"):
        registry.load("fruits-veges")
    kaggle_server.update({key: good[key] for key in change})
    assert len(registry.load("fruits-veges").index) == 45


def zipped(folder) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for path in sorted(folder.rglob("*.jpg")):
            target.write(path, path.relative_to(folder))
    return buffer.getvalue()


def test_no_kaggle_gives_one_line_with_the_way_out(kaggle_server, home):
    kaggle_server["status"] = 404
    with pytest.raises(InputError, match=r"fruits-veges.*FRUITVEG_DATA") as caught:
        registry.load("fruits-veges")
    assert "\n" not in str(caught.value)
