"""Kernels, notebooks and commands that start at once: a server has imported what they import, each is a fork of it.

`warm.py serve SOCKET` is the server; `kernel SOCKET FILE`, `notebook SOCKET FILE` and `command SOCKET …` ask it.
A process that dies takes the one that asked for it along, and the other way round.
"""
import json
import os
import signal
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = ("torch", "torch._dynamo", "pandas", "scipy.stats", "matplotlib.pyplot", "seaborn", "einops", "tqdm.auto",
           "safetensors.torch", "IPython.core.oinspect", "IPython.extensions.storemagic", "ipykernel.kernelapp",
           "ipykernel.debugger", "ipykernel.ipkernel", "matplotlib_inline.backend_inline", "nbdev.test")
ROOMS = ("_cli", "records", "claims", "thought_rl", "trm", "mugrokfast", "grpo", "tasks")


class Server:
    "Forks a process for each request, tells how it ended, and ends it when nobody waits for it any more"

    def __init__(self,
        path: str,  # of the socket
    ):
        self.path, self.waiting = path, {}  # process id → connection
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)

    def run(self) -> None:
        "Serve until whoever started this closes standard input"
        from selectors import EVENT_READ, DefaultSelector
        self.selector = DefaultSelector()
        ended, wake = socket.socketpair()
        for end in (ended, wake): end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for source in (self.listener, ended, sys.stdin): self.selector.register(source, EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is sys.stdin: return self.end()
                if key.fileobj is self.listener: self.start(self.listener.accept()[0])
                elif key.fileobj is ended:
                    ended.recv(4096)
                    self.collect()
                else: self.forget(key.fileobj)

    def start(self,
        connection: socket.socket,  # of one that asks for a process
    ) -> None:
        "Fork the process, unless it is to import another library than this one"
        message, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
        request = json.loads(message)
        if request["env"].get("PYTHONPATH") != os.environ.get("PYTHONPATH"):
            connection.sendall(b"cold\n")
            return connection.close()
        pid = os.fork()
        if not pid: become(request, files, (self.listener, *self.waiting.values()))
        for file in files: os.close(file)
        self.waiting[pid] = connection
        self.selector.register(connection, 1)
        connection.sendall(b"%d\n" % pid)

    def collect(self) -> None:
        "Tell how processes ended"
        while self.waiting:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid: return
            connection = self.waiting.pop(pid, None)
            if connection is None: continue
            self.selector.unregister(connection)
            try: connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            except OSError: pass  # nobody waits
            connection.close()

    def forget(self,
        connection: socket.socket,  # that was closed at its other end
    ) -> None:
        "End the process that nobody waits for"
        pid = next(p for p, c in self.waiting.items() if c is connection)
        self.selector.unregister(connection)
        self.waiting.pop(pid)
        connection.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def end(self) -> None:
        "End all processes"
        for pid in self.waiting: os.kill(pid, signal.SIGKILL)
        os.unlink(self.path)


def become(
    request: dict,      # what, args, cwd, env
    files: list[int],   # standard input, output and error of the one that asks
    sockets: tuple,     # of the server, of no use here
) -> None:
    "In the new process: be the kernel or execute the notebook"
    import atexit
    import traceback
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for end in sockets: end.close()
        for fd, file in enumerate(files): os.dup2(file, fd)
        for file in files: os.close(file)
        os.environ.clear()
        os.environ.update({k: v for k, v in request["env"].items() if k != "JPY_PARENT_PID"})
        os.chdir(request["cwd"])
        {"kernel": kernel, "notebook": notebook, "command": command}[request["what"]](*request["args"])
        code = 0
    except SystemExit as end: code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException: traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr): stream.flush()
        os._exit(code)


def kernel(
    file: str,   # of its connection
    *more: str,  # arguments of the one that starts it
) -> None:
    "Be a Jupyter kernel"
    from ipykernel import kernelapp
    kernelapp.launch_new_instance(argv=["-f", file, *more])


def notebook(
    file: str,  # a notebook of nbs/
) -> None:
    "Execute a component's notebook as nbdev-test does, and keep how many seconds of CPU it took in build/seconds"
    import resource
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    from nbdev.config import get_config
    from nbdev.test import test_nb
    config, path = get_config(ROOT), Path(file).resolve()
    flags = config.tst_flags.split() if isinstance(config.tst_flags, str) else config.tst_flags
    passed, _ = test_nb(path, skip_flags=flags, basepath=config.config_path)
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    spent = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after))
    if passed: (ROOT / f"build/seconds/{path.stem}").write_text(f"{spent:.1f}")
    sys.exit(not passed)


def command(
    *args: str,  # of `refine-nb`
) -> None:
    "Be the command line"
    from refine_nb._cli import app
    app(list(args))


def ask(
    what: str,  # kernel, notebook or command
    path: str,  # of the socket
    *args: str,  # a file, and for kernels more
) -> int:
    "Let the server start a process and wait for its end, passing signals on; the exit code"
    parent = os.getppid()
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    request = {"what": what, "args": args, "cwd": os.getcwd(), "env": dict(os.environ)}
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    lines = server.makefile()
    answer = lines.readline().strip()
    if answer == "cold": os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", "-f", *args])
    for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, lambda n, _: os.kill(int(answer), n))
    from select import select
    while not select([server], [], [], 0.5)[0]:
        if os.getppid() != parent: return 1
    code = int(lines.readline() or 1)
    if code < 0:  # a signal ended it: the same one ends this
        if -code != signal.SIGKILL: signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def remember_markov() -> None:
    "Draw the text that smoke runs read once for all of them"
    from refine_nb import data
    draw, text = data.markov, data.markov()
    data.markov = lambda *args, **kwargs: draw(*args, **kwargs) if args or kwargs else text


def preload() -> None:
    "Import what kernels and notebooks import"
    import gc
    from importlib import import_module
    os.environ |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    sys.path[0] = str(ROOT)
    for name in IMPORTS: import_module(name)
    for room in ROOMS: import_module(f"refine_nb.{room}")
    remember_markov()
    gc.collect()
    gc.freeze()  # forks share what is never touched


def main(what: str, *args: str) -> int:
    "The command line"
    if what != "serve": return ask(what, *args)
    server = Server(*args)
    preload()
    server.run()
    return 0


if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
