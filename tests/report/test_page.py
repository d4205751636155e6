"""The page: complete, harmless, small, and quiet in a browser."""

import http.server
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser

import numpy as np
import pytest

from hpcopt.report import page
from hpcopt.report.runs import Found, find
from tests.report import made_up
from tests.report.made_up_study import study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
FLAGS += "--disable-sync --no-first-run --enable-logging=stderr --dump-dom"
ITS_OWN = ("clients2.google.com", "update.googleapis.com", "accounts.google.com")
"""whom the browser asks whatever the page is"""


class Reader(HTMLParser):
    """What a browser makes of a page: its elements, and the texts in it."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def write(tmp_path):
    """Writes the page of what is found in some places, and perhaps of a study; gives its text."""

    def write(*paths, studies=()):
        found = find(paths)
        page.write(Found(found.runs, studies, found.troubles), tmp_path / "page.html")
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return write


@pytest.fixture
def everything(write, tmp_path):
    """A page with a study, two runs, something that cannot be read, and hostile texts all over."""
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    runs = [
        made_up.run(
            tmp_path / f"{at}<script>alert(2)<&", settings={"lr": at, "note": f"{at}{evil}"}, about=about
        )
        for at, about in enumerate(({"method": evil}, {"notes": evil} | made_up.ENDED))
    ]
    (tmp_path / "bad<script>").write_text("no HDF5")
    return write(*runs, tmp_path / "bad<script>", studies=[study({1: [8.0] * 6, 2: [5.0] * 6, 8: [3.0] * 6})])


def test_everything_is_there_once_and_text_is_text(everything):
    read = Reader(everything)
    tags = [tag for tag, _ in read.elements]
    (declared,) = (int(about["data-figures"]) for tag, about in read.elements if tag == "main")
    assert declared == tags.count("figure") == tags.count("svg") == 5
    assert not {"script", "img", "iframe", "object", "embed", "base"} & set(tags)
    assert not [key for _, about in read.elements for key in about if key.startswith("on")]
    links = [about[key] for _, about in read.elements for key in ("href", "src") if key in about]
    assert {link[0] for link in links if link != "data:,"} == {"#"}
    ids = [about["id"] for _, about in read.elements if "id" in about]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link[0] == "#"} <= set(ids)
    said = "".join(read.texts)
    for text in ('0"><script>alert(1)', "0<script>alert(2)<&", "bad<script>", "strong-study", "1 killed"):
        assert text in said


def test_tables_are_those_of_the_terminal_in_parts(write, tmp_path):
    extra = {f"key{at}": at for at in range(40)}
    text = write(
        made_up.run(tmp_path / "a", settings=extra),
        made_up.run(tmp_path / "b", settings=dict.fromkeys(extra, -1)),
    )
    section = text.partition('<section id="differences">')[2].partition("</section>")[0]
    heads = [re.sub("<.*?>", "", head) for head in re.findall(r"<th.*?>(.*?)</th>", section)]
    assert heads.count("run") == section.count("<table>") == 4
    assert [f"method.key{at}" for at in range(40)] == [head for head in heads if head != "run"]
    assert "<td>39</td>" in section


def test_a_million_records_and_many_curves_are_a_small_page(write, tmp_path):
    def long(columns):
        random = np.random.default_rng(0).random(10**6)
        rounds = np.arange(10**6)
        columns.clear()
        columns |= {"metrics/round": rounds, "metrics/loss": random, "metrics/seconds": rounds * 1e-3}

    assert len(write(made_up.run(tmp_path / "long", records=10**6, change=long))) < 1e6
    runs = [made_up.run(tmp_path / f"r{at}", 200, settings={"lr": at}) for at in range(12)]
    # two figures of curves with five panels each: of a network's runs there are about five times as many
    assert len(write(*runs)) < 1e6


@pytest.fixture
def load():
    """Loads a page in a browser behind a proxy: whom it asked for what, its console, and what it shows."""

    def load(text, home):
        asked = []

        class Proxy(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                body = text.encode() if self.path == "http://page.test/" else b""
                self.send_response(200 if body else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_CONNECT(self):
                asked.append(f"https://{self.path}")
                self.send_error(502)

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            where = [f"--user-data-dir={home}", f"--proxy-server=127.0.0.1:{server.server_port}"]
            command = [CHROMIUM, *FLAGS.split(), *where, "http://page.test/"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
            server.shutdown()
        strangers = [one for one in asked if not any(f"://{host}" in one for host in ITS_OWN)]
        return strangers, re.findall("CONSOLE.*", done.stderr), done.stdout

    return load


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH (apt-get install chromium)")
def test_in_a_browser_nothing_is_asked_for_and_nothing_is_wrong(everything, load, tmp_path):
    asks = '<img src="a.png"><img src="http://other.test/b.png"><img src="https://third.test/c.png">'
    asked, console, _ = load(asks + '<script>console.error("told")</script>', tmp_path / "1")
    assert {"http://page.test/a.png", "http://other.test/b.png", "https://third.test:443"} <= set(asked)
    assert any("told" in line for line in console)
    asked, console, shown = load(everything, tmp_path / "2")
    assert (asked, console) == (["http://page.test/"], [])
    assert (shown.count("<figure"), shown.count("<svg")) == (5, 5)
    # what the page's policy forbids is told: the console is where it would be
    asked, console, _ = load(
        everything.replace("<main", '<img src="http://other.test/b.png"><main'), tmp_path / "3"
    )
    assert asked == ["http://page.test/"]
    assert any("Content Security Policy" in line for line in console)
