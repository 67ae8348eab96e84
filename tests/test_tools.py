"""The scripts behind `make`: each complaint that they can make is provoked once"""
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import check
import nbformat
import pages
import pytest
import reach
import readme
import shape_checks
import smoke
import torch
from conftest import ROOT, checked
from jaxtyping import TypeCheckError
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from toy_project import gone


@pytest.fixture
def site(tmp_path):
    "Two staged pages, as nbdev leaves them for Quarto"
    folder = tmp_path / "_proc"
    folder.mkdir()
    (tmp_path / "_quarto.yml").touch()
    (folder / "_quarto.yml").write_text("metadata-files: [../_quarto.yml, sidebar.yml]")
    (folder / "sidebar.yml").write_text("website: {sidebar: {contents: [index.ipynb, 01_data.ipynb]}}")
    write(folder / "index.ipynb", "# Home\n\n[data](01_data.ipynb#words), [the same](/data.html#words), [elsewhere](https://example.org/x)")
    write(folder / "01_data.ipynb", "# Data\n\n## Words\n\n$e = m$ [up](#data)")
    return folder


def write(path, *cells):
    "A notebook of markdown cells"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in cells]), path)


def test_a_whole_site_has_no_complaints(site):
    assert pages.check_site(site) == []


@pytest.mark.parametrize("text, complaint", [
    ("[x](02_nothing.ipynb)", "there is no 02_nothing.ipynb"), ("[x](/data.html#nowhere)", "no heading with the id nowhere"), ("![x](figure.png)", "there is no figure.png"),
    ("[x](#nowhere)", "index.ipynb has no heading"), ("<div>\n\nnever closed", "unclosed")])
def test_broken_pages_are_found(site, text, complaint):
    write(site / "index.ipynb", text)
    assert any(found.startswith("index.ipynb") and complaint in found for found in pages.check_site(site))


def test_a_markdown_page_belongs_to_the_site(site):
    (site / "board.qmd").write_text("---\ntitle: Board\n---\n\n## One\n\n[gone](03_gone.ipynb)")
    (site / "sidebar.yml").write_text("website: {sidebar: {contents: [index.ipynb, 01_data.ipynb, board.qmd]}}")
    assert pages.check_site(site) == ["board.qmd: 03_gone.ipynb: there is no 03_gone.ipynb"]


def test_a_page_missing_from_the_sidebar_and_a_missing_settings_file_are_found(site):
    write(site / "02_more.ipynb", "# More")
    (site.parent / "_quarto.yml").unlink()
    found = pages.check_site(site)
    assert any("02_more.ipynb" in line for line in found) and any("_quarto.yml, which is not there" in line for line in found)


@pytest.mark.parametrize("other", ["data.qmd", "Data.ipynb", "2a_data.ipynb", "data.html"])
def test_two_sources_of_one_page_are_refused(site, other):
    (site / other).write_text("# Data")
    if other.endswith(".ipynb"): write(site / other, "# Data")
    first, last = sorted(("01_data.ipynb", other))
    assert pages.same_name(site) == [f"{first} and {last} would both become data.html: rename one of them"]
    assert set(pages.same_name(site)) <= set(pages.check_site(site))


def test_a_number_stays_in_the_name_of_a_markdown_page(site):
    (site / "01_data.qmd").write_text("# Data")
    assert pages.same_name(site) == []


def test_links_are_rewritten_for_the_top_of_the_repository(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    write(tmp_path / "nbs/index.ipynb", "[a](01_data.ipynb) [b](../LOG.md) [c](https://example.org) [d](#here)")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert "[a](nbs/01_data.ipynb) [b](LOG.md) [c](https://example.org) [d](#here)" in readme.render()[0]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    "A copy of what `sync` looks at, for a test to spoil"
    for folder in ("nbs", "refine_nb", "experiments"): shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    return tmp_path


def test_sync_finds_a_module_edited_by_hand(copy, capsys):
    module = copy / "refine_nb/plots.py"
    module.write_text(module.read_text().replace("nats per character", "bits"))
    assert not check.sync()[0] and "refine_nb/plots.py" in capsys.readouterr().out


def test_sync_finds_a_notebook_that_is_not_clean(copy, capsys):
    notebook = nbformat.read(copy / "nbs/05_plots.ipynb", 4)
    notebook.cells[2].metadata["scrolled"] = True
    nbformat.write(notebook, copy / "nbs/05_plots.ipynb")
    assert not check.sync()[0] and "nbs/05_plots.ipynb" in capsys.readouterr().out


def opened(notebook):
    "What JupyterLab makes of a notebook as soon as its kernel has started"
    notebook.metadata.kernelspec.display_name = "Python 3 (ipykernel)"
    notebook.metadata.language_info = {"name": "python", "version": "3.12.1", "codemirror_mode": {"name": "ipython"}}
    return notebook


def test_sync_takes_no_offence_at_a_notebook_that_was_only_opened(copy, capsys):
    for file in (copy / "nbs/05_plots.ipynb", copy / "experiments/01_char_lm.ipynb"):
        nbformat.write(opened(nbformat.read(file, 4)), file)
    passed, _ = check.sync()
    assert passed and "nbdev-export" not in capsys.readouterr().out


def test_make_lab_saves_a_notebook_as_git_has_it(copy, monkeypatch):
    hook = re.search(r"--ContentsManager\.pre_save_hook=(\S+)", (ROOT / "Makefile").read_text())[1]
    monkeypatch.chdir(copy)  # JupyterLab runs in the folder that it shows
    manager = LargeFileManager(root_dir=str(copy), pre_save_hook=hook)
    for name in ("nbs/05_plots.ipynb", "experiments/01_char_lm.ipynb"):
        before = (copy / name).read_bytes()
        model = manager.get(name)
        manager.save(model | {"content": opened(model["content"])}, name)
        assert (copy / name).read_bytes() == before


def test_smoke_runs_ask_only_for_parameters_that_the_notebook_has(tmp_path):
    (tmp_path / "experiments/sweeps").mkdir(parents=True)
    for line, asked in (("corpus = 'auto'", {"preset": "smoke", "corpus": "markov"}), ("seed = 0", {"preset": "smoke"})):
        cell = nbformat.v4.new_code_cell(f"preset = 'cpu'\n{line}\nPRESETS = {{'smoke': {{}}, 'cpu': {{}}}}", metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "experiments/01_one.ipynb")
        assert smoke.smoke_sweep(tmp_path, tmp_path / "experiments/01_one.ipynb") == {"notebook": "01_one", "runs": [asked]}


def test_every_value_of_a_sweep_file_is_in_some_smoke_run(tmp_path):
    "Few runs of those that the file asks for; random seeds, learning rates and the size of a number make none of their own, zero does"
    (tmp_path / "experiments/sweeps").mkdir(parents=True)
    cell = nbformat.v4.new_code_cell("preset = 'cpu'\nseed = 0\nlr = 0.1\nkind = 'a'\nbeta = 0.0\nPRESETS = {'smoke': {}, 'cpu': {}}", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "experiments/01_one.ipynb")
    (tmp_path / "experiments/sweeps/one.yaml").write_text("notebook: 01_one\nruns:\n  - {seed: [0, 1], lr: [0.1, 0.2]}\n  - {seed: 3, kind: [a, b, c], beta: [0.1, 0.2], start: {sweep: other, where: {}}}\n")
    small = {"preset": "smoke"}
    assert smoke.smoke_sweep(tmp_path, tmp_path / "experiments/01_one.ipynb")["runs"] == [{"seed": 0, "lr": 0.1} | small, {"seed": 3, "kind": "b", "beta": 0.1} | small, {"seed": 3, "kind": "c", "beta": 0.1} | small]


def test_no_run_is_there_that_the_others_make_idle():
    "The run with the most is chosen first, and is not needed in the end"
    found = {frozenset(own): {"run": own} for own in ("abcd", "abe", "cdf")}
    assert [run["run"] for run in smoke.covering(found, frozenset("abcdef"))] == ["abe", "cdf"]


def test_a_change_reaches_who_imports_it(tmp_path):
    sources = {"refine_nb/low.py": "", "refine_nb/high.py": "from .low import x", "tests/test_low.py": "import refine_nb.low", "tools/tool.py": "",
               "tests/test_high.py": "from refine_nb.high import y", "tests/test_tool.py": "import tool", "tests/test_none.py": "import os"}
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert reach.reached(tmp_path, {"refine_nb/low.py"}) == {"tests/test_low.py": 1, "tests/test_high.py": 2}
    assert reach.reached(tmp_path, {"tools/tool.py", "tests/test_none.py"}) == {"tests/test_tool.py": 1, "tests/test_none.py": 0}


def test_the_nearest_tests_that_fit_are_chosen():
    near = {"a": 2, "b": 1, "c": 1, "d": 3}
    assert reach.chosen(near, {"a": 5, "b": 50, "c": 3, "d": 3}, 11) == (["c", "a", "d"], ["b"])


def test_what_looks_alike_is_checked_once():
    "Another shape, another precision, another item of a list, another result: checked; the same: not again"
    asked = []
    counting = shape_checks.checked_once(typechecker=lambda fn: lambda *args, **kwargs: asked.append(args) or fn(*args, **kwargs))
    fn = counting(nothing_of)
    def checks(value):
        asked.clear()
        fn(value)
        return len(asked)
    assert [checks(torch.ones(2, 3)) > 0, checks(torch.zeros(2, 3)), checks(torch.ones(3, 3)) > 0, checks(torch.ones(2, 3).double()) > 0] == [True, 0, True, True]
    assert checks([1, 2]) > 0 and checks([1, None]) > 0 and checks([7, None]) == 0
    same = iter([1, 2, None])
    fn = shape_checks.checked_once(a_number_of, typechecker=checked)
    assert fn(same) == 1 and fn(same) == 2
    with pytest.raises(TypeCheckError, match="return value"): fn(same)


def nothing_of(value) -> None:
    "For the test above"


def a_number_of(values: object) -> int:
    "For the test above"
    return next(values)


needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="processes are not forked here")


@pytest.fixture
def server(tmp_path):
    "A warm server that has imported nothing"
    path = str(tmp_path / "socket")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import warm; warm.command = lambda *a: exec(a[0]); warm.Server({path!r}).run()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        while not (tmp_path / "socket").exists(): time.sleep(0.01)
        yield [sys.executable, "-I", "-S", str(ROOT / "tools/warm.py"), "command", path]
        process.stdin.close()


@needs_fork
def test_a_forked_process_is_like_one_of_its_own(server, tmp_path):
    "Folder, environment, output and exit code are those of the one that asks"
    code = "import os; print(os.getcwd(), os.environ['HERE']); raise SystemExit(7)"
    done = subprocess.run([*server, code], cwd=tmp_path, env=os.environ | {"HERE": "there"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, f"{tmp_path} there\n")
    assert subprocess.run([*server, "raise KeyError('x')"], capture_output=True).returncode == 1


@needs_fork
@pytest.mark.parametrize("victim", ["the one that asks", "the fork"])
def test_a_fork_and_the_one_that_asks_for_it_end_together(server, victim):
    asking = subprocess.Popen([*server, "import os, time; print(os.getpid(), flush=True); time.sleep(60)"], stdout=subprocess.PIPE, text=True)
    fork = int(asking.stdout.readline())
    os.kill(asking.pid if victim == "the one that asks" else fork, signal.SIGKILL)
    assert asking.wait(20) == -9
    for _ in range(500):
        if gone(fork): break
        time.sleep(0.02)
    assert gone(fork)


def test_a_users_own_files_are_not_checked(tmp_path):
    files = [tmp_path / "ours.py", tmp_path / "mine.py"]
    for file in files: file.touch()
    assert smoke.committed(tmp_path, files) == files  # without git, everything
    for words in (["init", "-q"], ["add", "ours.py"]): subprocess.run(["git", "-C", tmp_path, *words], check=True)
    assert smoke.committed(tmp_path, files) == files[:1]


def test_smoke_runs_know_nothing_of_a_users_own_sweep(tmp_path):
    (tmp_path / "experiments/sweeps").mkdir(parents=True)
    cell = nbformat.v4.new_code_cell("preset = 'cpu'\nkind = 'a'\nPRESETS = {'smoke': {}, 'cpu': {}}", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "experiments/01_one.ipynb")
    for name in ("ours", "mine"):
        (tmp_path / f"experiments/sweeps/{name}.yaml").write_text(f"notebook: 01_one\nruns: [{{kind: {name}}}]\n")
    for words in (["init", "-q"], ["add", "experiments/sweeps/ours.yaml"]): subprocess.run(["git", "-C", tmp_path, *words], check=True)
    assert smoke.smoke_sweep(tmp_path, tmp_path / "experiments/01_one.ipynb")["runs"] == [{"kind": "ours", "preset": "smoke"}]


def test_find_python_refuses_with_a_way_out():
    done = subprocess.run(["sh", ROOT / "tools/find_python.sh"], env={"PATH": "", "PYTHON": "no-such-python"}, executable=shutil.which("sh"), capture_output=True, text=True)
    assert done.returncode == 1 and "PYTHON=no-such-python" in done.stderr
    done = subprocess.run(["sh", ROOT / "tools/find_python.sh"], env={"PATH": ""}, executable=shutil.which("sh"), capture_output=True, text=True)
    assert done.returncode == 1 and "make PYTHON=" in done.stderr


def test_shapes_are_checked_while_tests_run():
    from refine_nb.trigram import NGram
    model = NGram.fit(torch.tensor([0, 1, 0, 1]), 2, 1)
    with pytest.raises(TypeCheckError): model.log_probs(torch.tensor([0, 1]))  # one dimension where (b, t) is declared
