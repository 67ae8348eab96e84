"""One file from the network, whole or not at all; and a hub that is asked once whether it is there"""
import hashlib
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_HOUR, _MINUTE = 3600, 60  # seconds


def cache_dir() -> Path:
    "Where downloads are kept: `REFINE_NB_CACHE`, or `refine_nb` in the user's cache folder"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("REFINE_NB_CACHE") or Path(base) / "refine_nb")


def check_sha256(data: bytes, expected: str, where: str) -> None:
    "Raises `ValueError` when the bytes are not the expected ones"
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise ValueError(f"{where}: SHA-256 is {actual}, expected {expected}: another or a damaged file; "
                         "remove it, or load it by its path as a corpus of your own")


def _within(seconds: float, read: Callable[[], bytes], url: str) -> bytes:
    "What `read` gives; raises its error, or `TimeoutError`: a name look-up knows no time limit of its own"
    result: dict = {}

    def work():
        try: result["data"] = read()
        except HTTPException as e: result["error"] = OSError(f"{url}: {e!r}")  # a transfer that broke off
        except (OSError, ValueError) as e: result["error"] = e

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in result: raise result["error"]
    if "data" not in result: raise TimeoutError(f"{url} gave no answer within {seconds} s")
    return result["data"]


def download(
    url: str,  # address of a file
    path: Path,  # where it shall lie
    sha256: str,  # of the whole file
    seconds: float = 10,  # for everything: name look-up, connection and transfer
) -> Path:
    "Fetch a file whole or not at all; raises `TimeoutError`, `OSError` or, for other bytes than expected, `ValueError`"
    data = _within(seconds, lambda: urllib.request.urlopen(url, timeout=seconds).read(), url)
    check_sha256(data, sha256, url)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed while writing
        if time.time() - left.stat().st_mtime > _MINUTE: left.unlink(missing_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally: part.unlink(missing_ok=True)
    return path


def shakespeare_path() -> Path:
    "The checked file of Tiny Shakespeare; raises `FileNotFoundError` that says where it was looked for"
    tried = []
    for folder in filter(None, [os.environ.get("REFINE_NB_DATA"), cache_dir()]):
        path = Path(folder) / "tinyshakespeare.txt"
        if path.is_file():
            check_sha256(path.read_bytes(), SHAKESPEARE_SHA256, str(path))
            return path
        tried.append(str(path))
    failed = path.with_suffix(".unreachable")
    if failed.is_file() and time.time() - failed.stat().st_mtime < _HOUR:
        tried.append(f"the network: {failed.read_text()} (next try in an hour, or once {failed} is removed)")
    else:
        try: return download(SHAKESPEARE_URL, path, SHAKESPEARE_SHA256)
        except (OSError, ValueError) as e:  # no network, or a page that some gateway sent instead of the file
            tried.append(f"the network: {e}")
            with suppress(OSError):
                failed.parent.mkdir(parents=True, exist_ok=True)
                failed.write_text(str(e))
    places = ", ".join(tried)
    raise FileNotFoundError(f"Tiny Shakespeare was not found; looked at {places}. "
                            "Put the file into a folder and set REFINE_NB_DATA to it.")


def _reachable(url: str, seconds: float) -> bool:
    "Whether anything answers there; refusals are answers too"
    request = urllib.request.Request(url, method="HEAD")
    try: _within(seconds, lambda: urllib.request.urlopen(request, timeout=seconds).read(), url)
    except urllib.error.HTTPError: return True
    except (OSError, ValueError): return False
    return True


@contextmanager
def quick_offline(
    seconds: float = 5,  # for the hub to answer
) -> Iterator[None]:
    "Within, a Hugging Face hub that cannot be reached is not asked again: the cache or a refusal comes at once"
    import datasets
    import huggingface_hub

    flags = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    before = [getattr(*flag) for flag in flags]
    if not any(before) and not _reachable(huggingface_hub.constants.ENDPOINT, seconds):
        for flag in flags: setattr(*flag, True)
    try: yield
    finally:
        for flag, value in zip(flags, before): setattr(*flag, value)
