"""Runs the shortened arms of one experiment in one checkout. The notebook `98_verify` explains it; `verify` starts it.

It works inside old commits too. So it asks of their library only what a notebook asks: `start_run` and its record.
torch is imported once; every checkout, and in it every arm, is a forked child. A crash costs one arm.
"""
import ast
import cProfile
import hashlib
import json
import os
import resource
import shutil
import sys
import traceback
import types
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path


def code_cells(notebook: Path) -> list[tuple[str, str, list[str]]]:
    "(name, source, tags) of the code cells that decide numbers"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [(c.get("id", str(i)), "".join(c["source"]), c["metadata"].get("tags", [])) for i, c in enumerate(cells)
            if c["cell_type"] == "code"]
    return [c for c in code if "report" not in c[2]]


def plain_python(source: str) -> ast.Module:
    "A cell's syntax tree; lines that only IPython understands are translated first"
    try: return ast.parse(source)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager
        return ast.parse(TransformerManager().transform_cell(source))


class Fewer(ast.NodeTransformer):
    "Of `10 if preset == 'smoke' else 400`, a number of judged items, at most four times the small one is kept"

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        small, large = getattr(node.body, "value", None), getattr(node.orelse, "value", None)
        mentioned = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
        if mentioned & {"preset", "tiny"} and type(small) is type(large) is int and large > 4 * small:
            node.orelse = ast.copy_location(ast.Constant(4 * small), node.orelse)
        return self.generic_visit(node)


def entered(watch: cProfile.Profile, package: Path) -> list[list]:
    "[module, first line] of the functions of a package that were entered"
    codes = [entry.code for entry in watch.getstats() if not isinstance(entry.code, str)]
    places = {(Path(c.co_filename), c.co_firstlineno) for c in codes}
    return sorted([path.stem, line] for path, line in places if path.parent == package and path != Path(__file__))


def leave_out_compiler(torch) -> None:
    "The first optimiser of a process imports torch's compiler for seconds, only to say that nothing is to be compiled"
    stub = types.ModuleType("torch._dynamo")
    stub.disable = lambda fn=None, recursive=True, **kwargs: fn
    stub.graph_break = lambda *args, **kwargs: None
    sys.modules["torch._dynamo"] = torch._dynamo = stub


class Side:
    "One experiment of one checkout, ready to be run"

    def __init__(self,
        job: dict,  # see `_verify_pairs.job_of`
    ):
        self.notebook, self.scratch, self.job = Path(job["notebook"]), Path(job["scratch"]), job
        self.cells = code_cells(self.notebook)
        self.names, self.needs = {}, {}
        import refine_nb
        self.package = Path(refine_nb.__file__).resolve().parent
        self.watch = cProfile.Profile(subcalls=False, builtins=False)
        if job["package"] and self.package != Path(job["package"]).resolve():
            raise ImportError(f"refine_nb was imported from {self.package}, not from {job['package']}")

    def prepare(self) -> None:
        "Import what the notebook imports, and cut what it will read"
        self.skip_recorder()
        self.watch.enable()
        self.cut_corpus()
        self.cut_tasks()
        for name, source, _ in self.cells:
            tree = plain_python(source)
            if all(isinstance(s, ast.Import | ast.ImportFrom) for s in tree.body): self.execute(name, tree)
        self.watch.disable()

    def cut_corpus(self) -> None:
        "Texts keep all their characters, and of their end what the job says"
        kept = self.job["characters"]
        if not kept: return
        from refine_nb import data
        whole = data.load_corpus

        @cache
        def cut(name):
            if name == "markov": return whole(name, n=kept)
            corpus = whole(name)
            return replace(corpus, text="".join(sorted(set(corpus.text))) + corpus.text[-kept:])

        data.load_corpus = cut
        for name in {run["params"]["corpus"] for run in self.job["runs"]}:
            with suppress(Exception): cut(name)  # read once for all arms; an arm that needs a lost text says so itself

    def cut_tasks(self) -> None:
        "Of thousands of problems, fewer are drawn"
        try: from refine_nb.tasks import Task
        except ImportError: return
        whole, most = Task.sample, self.job["problems"]
        Task.sample = lambda task, n, *args, **kwargs: whole(task, min(n, most), *args, **kwargs)

    def skip_recorder(self) -> None:
        "Identities are not compared, so hashes of code, which take long, are left out where a commit has them"
        recorder = next(import_module(f"refine_nb.{room}") for room in ("records", "runs")
                        if (self.package / f"{room}.py").exists())
        for name, value in (("code_hash", "unhashed"), ("_edited_since_import", False), ("provenance", {})):
            if hasattr(recorder, name): setattr(recorder, name, lambda *args, value=value, **kwargs: value)

    def execute(self, name: str, tree: ast.Module) -> None:
        "Run a cell in the notebook's namespace"
        exec(compile(tree, f"{self.notebook.name}#{name}", "exec"), self.names)

    def run_cells(self, params: dict) -> None:
        "Run the notebook with these parameters"
        for name, source, tags in self.cells:
            self.execute(name, Fewer().visit(plain_python(source)))
            if "parameters" in tags: self.names.update({k: v for k, v in params.items() if k in self.names})

    def enter_folder(self, folder: Path, needs: dict[str, str]) -> None:
        "A project of its own, with the runs that this one builds on"
        (folder / "experiments").mkdir(parents=True)
        shutil.copy(self.notebook, folder / "experiments")
        for id, digest in needs.items():
            shutil.copytree(next((self.scratch / digest / "runs").glob("*/run.json")).parent, folder / "runs" / id)
        os.chdir(folder)

    def child(self, folder: Path, params: dict, needs: dict[str, str]) -> None:
        "In the child: run, and write down what came of it"
        resource.setrlimit(resource.RLIMIT_CPU, (self.job["limit"], self.job["limit"]))
        self.enter_folder(folder, needs)
        log = os.open("log.txt", os.O_CREAT | os.O_WRONLY)
        for fd in (1, 2): os.dup2(log, fd)
        if self.job["watch"]: self.watch.enable()
        error = None
        try: self.run_cells(params)
        except FloatingPointError as diverged: self.note_divergence(diverged)
        except BaseException as raised: error = self.error_text(raised)
        self.watch.disable()
        modules = sorted(n.partition(".")[2] for n in sys.modules if n.startswith("refine_nb."))
        result = {"error": error, "entered": entered(self.watch, self.package), "modules": modules}
        result |= {"cpu": sum(os.times()[:2])} | left_behind(Path("."), needs)
        Path("result.part").write_text(json.dumps(result), encoding="utf-8")
        os.replace("result.part", "result.json")

    def note_divergence(self, error: FloatingPointError) -> None:
        "What a shell does where a run diverges: the recorder publishes it"
        for value in list(self.names.values()):
            if type(value).__name__ == "Run": value.diverged(error)

    def error_text(self, error: BaseException) -> str:
        "An error in words, with the place in the notebook or the library where it was raised"
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
        place = f" ({Path(frames[-1].filename).name}, {frames[-1].name})" if frames else ""
        return f"{type(error).__name__}: {error}{place}"

    def fork(self, name: str, params: dict, needs: dict[str, str]) -> dict:
        "Run one arm in a child; what came of it"
        folder = self.scratch / name
        status = in_child(self.child, folder, params, needs)
        if (folder / "result.json").exists(): return json.loads((folder / "result.json").read_text(encoding="utf-8"))
        why = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
        return no_result(f"the run ended with {why}; its limit is {self.job['limit']} CPU-s")

    def need(self, params: dict) -> str:
        "Run, once, a run that others build on; the name of its folder"
        digest = "need-" + hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:16]
        if digest not in self.needs: self.needs[digest] = self.fork(digest, params, {})
        return digest

    def arm(self, run: dict) -> dict:
        "Run one arm, before it what it builds on"
        needs = {id: self.need(params) for id, params in run["needs"].items()}
        lost = [self.needs[d]["error"] or "it left no result" for d in needs.values()
                if (self.needs[d]["record"] or {}).get("status") != "ok"]
        if lost: return no_result(f"a run that it builds on: {lost[0]}")
        result = self.fork(run["name"], run["params"], needs)
        result["entered"] += [e for d in needs.values() for e in self.needs[d]["entered"]]
        shutil.rmtree(self.scratch / run["name"], ignore_errors=True)
        return result


def no_result(error: str) -> dict:
    "The result of a run that left none"
    return {"error": error, "rows": [], "record": None, "entered": [], "modules": [], "cpu": 0.0}


def left_behind(folder: Path, needs: dict) -> dict:
    "The rows and the record that a run left"
    records = [p for p in (folder / "runs").glob("*/run.json") if p.parent.name not in needs]
    attempts = (folder / "runs").glob(".attempts/*/*/metrics.jsonl")
    rows = [records[0].with_name("metrics.jsonl")] if records else list(attempts)
    record = json.loads(records[0].read_text(encoding="utf-8")) if records else None
    lines = [line for path in rows for line in path.read_text(encoding="utf-8").splitlines()]
    return {"rows": [json.loads(line) for line in lines], "record": record}


def work(folder: Path) -> None:
    "In a child: run the arms that a job names; a line of JSON for each in `out`"
    for name, fd in (("out", 1), ("err", 2)): os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), fd)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    sys.path.insert(0, str(Path(job["package"]).parent))
    side = Side(job)
    side.prepare()
    for run in job["runs"]:
        print(json.dumps({"name": run["name"]} | side.arm(run)), flush=True)


def in_child(call, *args) -> int:
    "Call something in a forked child; the status with which it ended"
    pid = os.fork()
    if pid: return os.waitpid(pid, 0)[1]
    try: call(*args)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def main() -> None:
    "Import what all commits share, then run the jobs whose folders are named on stdin"
    for name in ("datasets", "pandas", "scipy.stats"): import_module(name)
    leave_out_compiler(import_module("torch"))
    for line in sys.stdin:
        folder = Path(line.strip())
        in_child(work, folder)
        (folder / "ended").touch()


if __name__ == "__main__": main()
