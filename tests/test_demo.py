"The demonstration in miniature: every method stands beside its control, and a second call finds the work done"
import pytest
import torch

import demo
from refine_nb.benchmark_tasks import load_task
from refine_nb.thoughts import thought_config_for
from refine_nb.warm_start import WarmStartBatches

TINY = demo.Size(explore=2, refine=2, plain=2, noise=2, ahead=2, warm=8, reward=2, judged=20)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    home = tmp_path_factory.mktemp("demo")
    return home, demo.run(TINY, home)


def test_every_method_stands_beside_its_control(first):
    lines = first[1]
    assert [line.method for line in lines] == ["guided GRPO", "TRM refinement", "", "look-ahead confidence", "thoughts"]
    assert all(line.claimed and line.here and line.control for line in lines)


def test_a_second_call_trains_nothing(first, monkeypatch):
    home, lines = first
    def refuse(*args, **more): raise AssertionError("an update was made")
    monkeypatch.setattr("refine_nb.train._step", refuse)
    assert demo.run(TINY, home) == lines


def test_a_thought_is_read_as_the_warm_start_taught_it():
    task = load_task("s5", 2)
    marks = thought_config_for(task, task.sample(50, 0), 4)
    [(prompts, written)] = next(WarmStartBatches(task, 3, direct=0.0))
    for taught in torch.cat([prompts, written], 1):
        start, end = (taught == marks.start).nonzero().item(), (taught == marks.end).nonzero().max().item()
        prompt, thought = task.vocab.decode(taught[:start]), task.vocab.decode(taught[start + 1:end])
        assert torch.equal(demo.thoughtful(task, marks, prompt, thought), taught[: end + 1])


def test_a_damaged_thought_ends_in_another_answer():
    assert demo.damaged("cedab,edabc") == "cedab,deabc"
    assert demo.table([demo.Line("a", "bb", "c", "d")]).splitlines()[1] == "a       bb       c     d"


def test_models_of_another_version_are_no_beginning(tmp_path):
    home = tmp_path / "demo"
    demo.start_anew_if_changed(home)
    (home / "model").touch()
    demo.start_anew_if_changed(home)
    assert (home / "model").exists()
    (home / "version.txt").write_text("an older one")
    demo.start_anew_if_changed(home)
    assert not (home / "model").exists()


def test_ctrl_c_is_said_in_a_sentence(monkeypatch, capsys):
    def stopped(): raise KeyboardInterrupt
    monkeypatch.setattr(demo, "run", stopped)
    assert demo.main() == 130 and "`make demo` goes on" in capsys.readouterr().out
