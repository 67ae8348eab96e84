"""Characters, corpora, splits and windows against references that share no code with them"""
import hashlib
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch

from refine_nb import _download as network
from refine_nb._download import download
from refine_nb.data import (
    CharVocab, MarkovSource, UnknownCharacter, Windows, eval_windows, load_corpus, markov, read_text, split_ids,
    supervised,
)


def test_vocab_round_trip_and_refusals():
    text = "héllo wörld 😀\n"
    vocab = CharVocab.from_text(text, ["<s>", "<e>"])
    assert vocab.decode(vocab.encode(text)) == text
    assert vocab.chars == "".join(sorted(set(text)))
    assert vocab["<e>"] == len(vocab) - 1 and vocab["h"] == vocab.chars.index("h")
    assert vocab.decode([vocab["<s>"], vocab["h"]]) == "<s>h"
    with pytest.raises(UnknownCharacter, match=r"'z' \(U\+007A\) at position 2"): vocab.encode("hlz")
    with pytest.raises(UnknownCharacter, match="position 1"): vocab.encode("h\U0001F680")  # beyond the largest known code point
    with pytest.raises(ValueError, match="outside"): vocab.decode([len(vocab)])
    with pytest.raises(ValueError, match="outside"): vocab.decode([-1])
    for bad in ["s", "<s>", ""]:
        with pytest.raises(ValueError, match="special symbols"): CharVocab("ab", ["<s>", bad])
    with pytest.raises(ValueError, match="twice"): CharVocab("aba")
    with pytest.raises(ValueError, match="neither one character nor"): vocab["<x>"]


def test_markov_table_against_its_definition():
    src = MarkovSource(n_symbols=6, order=3, n_classes=2, seed=5)
    for a in range(6):
        for b in range(6):
            for c in range(6):
                row = src.classes[0][c] + 2 * src.classes[1][b] + 4 * src.classes[2][a]
                assert np.array_equal(src.table[a, b, c], src.rows[row])
    assert np.allclose(src.rows.sum(1), 1) and src.rows.min() >= 0.01 / 6 * (1 - 1e-12)
    assert sorted(np.bincount(src.classes[1])) == [3, 3]


def test_markov_limit_against_the_transition_matrix():
    "Stationary distribution and entropy rate from the eigenvector of the 16 × 16 chain of pairs"
    src = MarkovSource(n_symbols=4, order=2, n_classes=2, seed=1)
    chain = np.zeros((16, 16))
    for a in range(4):
        for b in range(4):
            for c in range(4): chain[a * 4 + b, b * 4 + c] = src.table[a, b, c]
    values, vectors = np.linalg.eig(chain.T)
    pi = np.real(vectors[:, np.argmin(abs(values - 1))])
    pi /= pi.sum()
    assert np.allclose(src.stationary.ravel(), pi, atol=1e-12)
    rows = src.table.reshape(16, 4)
    assert math.isclose(src.entropy_rate, -(pi[:, None] * rows * np.log(rows)).sum(), rel_tol=1e-12)
    assert math.isclose(src.best_accuracy, (pi * rows.max(1)).sum(), rel_tol=1e-12)


def test_markov_log_probs_average_the_unknown_past():
    src = MarkovSource(n_symbols=4, order=2, n_classes=2, seed=1)
    first = src.log_probs(torch.tensor([[2, 1, 3]])).exp()[0]
    joint = src.stationary[:, 2]  # P(oldest, newest = 2)
    assert np.allclose(first[0], (joint[:, None] * src.table[:, 2]).sum(0) / joint.sum(), atol=1e-6)
    assert np.allclose(first[1], src.table[2, 1], atol=1e-6) and np.allclose(first[2], src.table[1, 3], atol=1e-6)


def test_markov_draw_follows_its_rows():
    src = MarkovSource(n_symbols=4, order=2, n_classes=2, seed=1)
    ids = src.sample(200_000, seed=3)
    counts = np.zeros((4, 4, 4))
    np.add.at(counts, (ids[:-2], ids[1:-1], ids[2:]), 1)
    seen = counts.sum(-1, keepdims=True)
    error = abs(counts / seen - src.table) / np.sqrt(src.table * (1 - src.table) / seen)
    assert error.max() < 5  # standard errors, 64 of them
    assert (src.sample(100, 3) == src.sample(100, 3)).all() and (src.sample(100, 3) != src.sample(100, 4)).any()


@pytest.mark.parametrize("bad", [dict(n_symbols=1), dict(n_symbols=27), dict(n_classes=3), dict(order=0), dict(order=6), dict(floor=0.0), dict(floor=-1.0), dict(floor=2.0), dict(concentration=0.0)])
def test_markov_refuses(bad):
    with pytest.raises(ValueError): MarkovSource(**bad)


def test_files_are_read_exactly_or_refused(tmp_path):
    (tmp_path / "crlf.txt").write_bytes(b"a\r\nb")
    assert load_corpus(tmp_path / "crlf.txt").text == "a\r\nb"
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"): read_text(tmp_path / "empty.txt")
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match="0xff at position 3"): read_text(tmp_path / "bad.txt")
    with pytest.raises(FileNotFoundError, match="nowhere.txt"): load_corpus(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="is no corpus"): load_corpus("tinyshakespear")
    with pytest.raises(ValueError, match="takes no settings, got n"): load_corpus("pydocs", n=3)
    with pytest.raises(KeyError, match="no column 'text'"):
        (tmp_path / "r.jsonl").write_text('{"story": "x"}\n')
        load_corpus("hf:json", data_files=str(tmp_path / "r.jsonl"), cache_dir=str(tmp_path / "c"))


@pytest.fixture
def server():
    "A file server on the loopback address that answers whole, broken, or never"
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            if self.path == "/hang": stop.wait(20)
            self.send_response(404 if self.path == "/refused" else 200)
            self.end_headers()

        def do_GET(self):
            if self.path == "/hang": stop.wait(20)
            body = b"to be or not to be"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + (10 if self.path == "/broken" else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args): pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    stop.set()
    http.shutdown()


def test_download_is_whole_or_nothing(server, tmp_path, monkeypatch):
    digest = hashlib.sha256(b"to be or not to be").hexdigest()
    path = tmp_path / "cache" / "t.txt"
    with pytest.raises(ValueError, match="expected 0000"): download(server + "/ok", path, "0000")
    with pytest.raises(OSError, match="IncompleteRead"): download(server + "/broken", path, digest)
    with pytest.raises(OSError, match="no answer within|timed out"): download(server + "/hang", path, digest, seconds=0.5)
    assert not list(tmp_path.rglob("*.txt*"))
    with monkeypatch.context() as patch:  # the file appears by one rename or not at all
        patch.setattr(network.os, "replace", lambda *args: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"): download(server + "/ok", path, digest)
    assert not list(tmp_path.rglob("*.*"))
    assert download(server + "/ok", path, digest).read_bytes() == b"to be or not to be"
    assert [p.name for p in path.parent.iterdir()] == ["t.txt"]


@pytest.mark.parametrize("error", [OSError, TimeoutError, ValueError])
def test_auto_without_file_or_network(monkeypatch, tmp_path, error):
    "Falls back to pydocs, says so, and asks the network only once an hour"
    asked = []

    def fail(*args):
        asked.append(1)
        raise error("no route")

    monkeypatch.delenv("REFINE_NB_DATA", raising=False)
    monkeypatch.setenv("REFINE_NB_CACHE", str(tmp_path))
    monkeypatch.setattr(network, "download", fail)
    for _ in range(2):
        with pytest.warns(UserWarning, match="'auto' is 'pydocs'.*no route"): corpus = load_corpus("auto")
    assert corpus.name == "pydocs" and "chosen by auto" in corpus.note and len(asked) == 1
    with pytest.raises(FileNotFoundError, match="REFINE_NB_DATA") as refusal: load_corpus("tinyshakespeare")
    marker, = tmp_path.glob("*.unreachable")
    assert str(marker) in str(refusal.value)
    marker.unlink()
    with pytest.warns(UserWarning): load_corpus("auto")
    assert len(asked) == 2


def test_auto_with_an_unwritable_cache(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.delenv("REFINE_NB_DATA", raising=False)
    monkeypatch.setenv("REFINE_NB_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(network, "SHAKESPEARE_URL", "http://127.0.0.1:9/nobody-listens")
    with pytest.warns(UserWarning, match="'auto' is 'pydocs'"): assert load_corpus("auto").name == "pydocs"


def test_a_foreign_tinyshakespeare_is_refused(monkeypatch, tmp_path):
    (tmp_path / "tinyshakespeare.txt").write_text("To be")
    monkeypatch.setenv("REFINE_NB_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="expected 86c4e6aa"): load_corpus("tinyshakespeare")
    with pytest.raises(ValueError, match="expected 86c4e6aa"): load_corpus("auto")


def test_tinyshakespeare(tinyshakespeare):
    assert len(tinyshakespeare.text) == 1_115_394 and len(set(tinyshakespeare.text)) == 65
    assert tinyshakespeare.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert load_corpus("auto").sha256 == tinyshakespeare.sha256


@pytest.mark.parametrize("n", [10, 1000, 1_115_394])
def test_stages_do_not_overlap(n):
    ids = torch.arange(n)
    fit, judged = split_ids(ids, "tune")
    refit, reported = split_ids(ids, "report")
    assert torch.equal(torch.cat([fit, judged]), refit) and torch.equal(torch.cat([refit, reported]), ids)
    assert abs(len(reported) / n - 0.1) < 0.06
    with pytest.raises(ValueError, match="none of tune, report"): split_ids(ids, "test")


def test_windows_are_the_text(tmp_path):
    ids = torch.arange(100)
    stream = Windows(ids, context=7, batch=5000, ahead=2, seed=1)
    batch = next(stream)
    assert torch.equal(batch, batch[:, :1] + torch.arange(9)) and set(batch[:, 0].tolist()) == set(range(92))
    torch.manual_seed(0)
    torch.rand(3)  # the global random state is none of its business
    assert torch.equal(next(Windows(ids, 7, 5000, 2, seed=1)), batch)
    assert not torch.equal(next(Windows(ids, 7, 5000, 2, seed=2)), batch)
    with pytest.raises(ValueError, match="another text"): Windows(ids + 1, 7, 5000, 2).load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match="context or size"): Windows(ids, 7, 50, 2).load_state_dict(stream.state_dict())
    targets = eval_windows(ids, 7)[:, 1:].flatten()
    assert torch.equal(targets, torch.arange(1, 99))
    for context, ahead in [(100, 1), (0, 1), (5, 0)]:
        with pytest.raises(ValueError): eval_windows(ids, context, ahead)
    with pytest.raises(ValueError, match="empty"): Windows(ids, 7, 0)


def test_a_periodic_source_settles():
    "Two symbols that nearly always alternate: the chain of period 2 has entropy near 0 and the uniform distribution"
    src = MarkovSource(n_symbols=2, order=1, n_classes=2, floor=0.01, concentration=0.05, seed=1)
    p = src.table
    assert np.allclose(src.stationary, np.array([p[1, 0], p[0, 1]]) / (p[0, 1] + p[1, 0]), atol=1e-9)


@pytest.mark.parametrize("name", ["t.txt", "T.TXT", "notes.md"])
def test_texts_of_other_editors_are_read(tmp_path, name):
    "A byte order mark is no symbol of the text; endings may be written large"
    (tmp_path / name).write_bytes("\ufeffto be".encode())
    assert load_corpus(tmp_path / name).text == "to be"


def test_rows_of_a_data_set_that_are_empty_are_left_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n{"text": null}\n{"text": "b"}\n')
    there = dict(data_files=str(file), cache_dir=str(tmp_path))
    assert load_corpus("hf:json", **there).text == "a\n\nb"
    with pytest.raises(ValueError, match="json, column 'text', holds no text in its first 0 rows"): load_corpus("hf:json", **there, limit=0)
    with pytest.raises(ValueError, match="names no data set"): load_corpus("hf:")


def test_two_texts_of_one_file_name_are_two_corpora(tmp_path):
    for folder, text in (("a", "to be"), ("b", "or not"), ("c", "to be")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.txt").write_text(text)
    a, b, c = (load_corpus(tmp_path / folder / "mine.txt").name for folder in "abc")
    assert a == c != b and a.startswith("file:mine-") and b.startswith("file:mine-")


@pytest.mark.parametrize("n", [0, -1])
def test_a_source_gives_no_empty_text(n):
    with pytest.raises(ValueError, match=f"a text of {n} characters is empty"): markov(n)


@pytest.mark.parametrize("path, offline", [("/ok", False), ("/refused", False), ("/hang", True), (None, True)])
def test_a_hub_is_asked_once_whether_it_is_there(server, monkeypatch, path, offline):
    "Whoever answers is there, also with a refusal; flags that were set before are not touched, and all are as before"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server + path if path else "http://127.0.0.1:9/nobody")
    for module in (huggingface_hub.constants, datasets.config): monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError), network.quick_offline(0.5):
        assert huggingface_hub.constants.HF_HUB_OFFLINE == datasets.config.HF_HUB_OFFLINE == offline
        raise KeyError("inside")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_inputs_and_targets():
    "Every next character of a window, only the completion of a problem"
    ids = torch.arange(12).view(2, 6)
    window, problem = supervised(ids), supervised((ids[:, :4], ids[:, 4:]))
    assert torch.equal(window.ids, ids[:, :-1]) and torch.equal(window.target, ids[:, 1:])
    assert torch.equal(problem.ids, window.ids) and torch.equal(problem.target, ids[:, 4:])
    assert supervised(problem) is problem
