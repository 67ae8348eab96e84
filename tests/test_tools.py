"""The scripts behind `make`: each complaint that they can make is provoked once"""
import re
import shutil
import subprocess

import check
import nbformat
import pages
import pytest
import readme
from conftest import ROOT
from jupyter_server.services.contents.largefilemanager import LargeFileManager


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


def test_smoke_runs_ask_only_for_parameters_that_the_notebook_has(monkeypatch, tmp_path):
    (tmp_path / "experiments/sweeps").mkdir(parents=True)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    for line, asked in (("corpus = 'auto'", {"preset": "smoke", "corpus": "markov"}), ("seed = 0", {"preset": "smoke"})):
        cell = nbformat.v4.new_code_cell(f"preset = 'cpu'\n{line}\nPRESETS = {{'smoke': {{}}, 'cpu': {{}}}}", metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "experiments/01_one.ipynb")
        assert check.smoke_sweep(tmp_path / "experiments/01_one.ipynb") == {"notebook": "01_one", "runs": [asked]}


def test_every_value_of_a_sweep_file_is_in_some_smoke_run(monkeypatch, tmp_path):
    "Lists side by side; random seeds, learning rates and the size of a number make no run of their own, zero does"
    (tmp_path / "experiments/sweeps").mkdir(parents=True)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    cell = nbformat.v4.new_code_cell("preset = 'cpu'\nseed = 0\nlr = 0.1\nkind = 'a'\nbeta = 0.0\nPRESETS = {'smoke': {}, 'cpu': {}}", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "experiments/01_one.ipynb")
    (tmp_path / "experiments/sweeps/one.yaml").write_text("notebook: 01_one\nruns:\n  - {seed: [0, 1], lr: [0.1, 0.2]}\n  - {seed: 3, kind: [a, b, c], beta: [0.1, 0.2], start: {sweep: other, where: {}}}\n")
    small = {"preset": "smoke"}
    assert check.smoke_sweep(tmp_path / "experiments/01_one.ipynb")["runs"] == [{"seed": 0, "lr": 0.1} | small, {"seed": 3, "kind": "a", "beta": 0.1} | small, {"seed": 3, "kind": "b", "beta": 0.2} | small, {"seed": 3, "kind": "c", "beta": 0.2} | small]


def test_a_users_own_files_are_not_checked(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "ROOT", tmp_path)
    files = [tmp_path / "ours.py", tmp_path / "mine.py"]
    for file in files: file.touch()
    assert check.committed(files) == files  # without git, everything
    for words in (["init", "-q"], ["add", "ours.py"]): subprocess.run(["git", "-C", tmp_path, *words], check=True)
    assert check.committed(files) == files[:1]


def test_smoke_runs_know_nothing_of_a_users_own_sweep(monkeypatch, tmp_path):
    (tmp_path / "experiments/sweeps").mkdir(parents=True)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    cell = nbformat.v4.new_code_cell("preset = 'cpu'\nkind = 'a'\nPRESETS = {'smoke': {}, 'cpu': {}}", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "experiments/01_one.ipynb")
    for name in ("ours", "mine"):
        (tmp_path / f"experiments/sweeps/{name}.yaml").write_text(f"notebook: 01_one\nruns: [{{kind: {name}}}]\n")
    for words in (["init", "-q"], ["add", "experiments/sweeps/ours.yaml"]): subprocess.run(["git", "-C", tmp_path, *words], check=True)
    assert check.smoke_sweep(tmp_path / "experiments/01_one.ipynb")["runs"] == [{"kind": "ours", "preset": "smoke"}]


def test_find_python_refuses_with_a_way_out():
    done = subprocess.run(["sh", ROOT / "tools/find_python.sh"], env={"PATH": "", "PYTHON": "no-such-python"}, executable=shutil.which("sh"), capture_output=True, text=True)
    assert done.returncode == 1 and "PYTHON=no-such-python" in done.stderr
    done = subprocess.run(["sh", ROOT / "tools/find_python.sh"], env={"PATH": ""}, executable=shutil.which("sh"), capture_output=True, text=True)
    assert done.returncode == 1 and "make PYTHON=" in done.stderr


def test_shapes_are_checked_while_tests_run():
    import torch
    from jaxtyping import TypeCheckError
    from refine_nb.trigram import NGram
    model = NGram.fit(torch.tensor([0, 1, 0, 1]), 2, 1)
    with pytest.raises(TypeCheckError): model.log_probs(torch.tensor([0, 1]))  # one dimension where (b, t) is declared
