"Ctrl-C, noted now and raised where it does no harm: in training (`09_train`) and in sweeps (`97_execute`)."
import signal
import threading
from contextlib import contextmanager


class DeferredInterrupt:
    "Ctrl-C is noted where it falls and raised where `check` is called, at the latest at the end; a second one at once"

    def __init__(self):
        self.noted, self.before = False, None

    def __call__(self, *_):
        if self.noted: raise KeyboardInterrupt
        self.noted = True

    def __bool__(self) -> bool: return self.noted

    def check(self) -> None:
        "Raise a Ctrl-C that was noted"
        if self.noted: raise KeyboardInterrupt

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self)
        return self

    def __exit__(self, kind, *_):
        if self.before is not None: signal.signal(signal.SIGINT, self.before)
        if kind is None: self.check()


@contextmanager
def sigint_blocked():
    "Ctrl-C is kept back for a moment; processes and threads started meanwhile never hear it"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try: yield
    finally: signal.pthread_sigmask(signal.SIG_SETMASK, before)
