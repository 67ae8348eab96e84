"The demonstration in miniature: every method stands beside its control, and a second call finds the work done"
import pytest

import demo

TINY = demo.Size(explore=2, refine=2, plain=2, noise=2, ahead=2, warm=8, reward=2, judged=20)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    home = tmp_path_factory.mktemp("demo")
    return home, demo.run(TINY, home)


def test_every_method_stands_beside_its_control(first):
    lines = first[1]
    assert [line.method for line in lines] == ["guided GRPO", "TRM refinement", "TRM, its loss",
                                             "look-ahead confidence", "thoughts"]
    assert all(line.claimed and line.here and line.control for line in lines)


def test_a_second_call_trains_nothing(first, monkeypatch):
    home, lines = first
    def refuse(*args, **more): raise AssertionError("an update was made")
    monkeypatch.setattr("refine_nb.train._step", refuse)
    assert demo.run(TINY, home) == lines


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
