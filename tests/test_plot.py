"""Curves of runs: what a picture shows, while they train too; and what cannot be drawn."""
import sys
import types

import pytest
from test_evaluate import world  # noqa: F401

import evaluate
import sample
from runtime import Problem, write
from tools import plot

LINE = {"sft": {"loss": 2.0, "lr": 0.1}, "ppo": {"score": 1.0, "kl": 2.0, "entropy": 0.5,
                                                 "length": 20.0, "episodes": 8}}
FLAG = {"sft": {"loss_on": "all"}, "ppo": {"kl_coef": 0.05}}


def stage(folder, kind, lines):
    """A stage's folder with a log of so many lines."""
    write(folder / "config.json", {"flags": FLAG[kind]})
    write(folder / "log.jsonl", [{"step": i, **LINE[kind], "seconds": i} for i in range(lines)])
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    return [stage(tmp_path / "a/supervised", "sft", 30), stage(tmp_path / "b/ppo", "ppo", 3)]


@pytest.fixture
def drawn(monkeypatch):
    """What is on each figure just before it is closed: {title: lines with points}."""
    pyplot, seen = plot.pyplot_of(""), []

    def close(page):
        seen.append({ax.get_title(): [line for line in ax.lines if len(line.get_xdata())]
                     for ax in page.axes})
    monkeypatch.setattr(pyplot, "close", close)
    return seen


def test_two_runs_of_different_stages_share_a_picture(runs, drawn, tmp_path, capsys):
    plot.main([*runs, "--out", str(tmp_path / "p.png")])
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    shown, = drawn
    assert list(shown) == [title for of, title, *_ in plot.PANELS if of in ("sft", "ppo")]
    lines = [line for some in shown.values() for line in some]
    assert [len(line.get_xdata()) for line in lines] == [30, 3, 3, 3, 3]
    assert lines[0].get_color() != lines[1].get_color() == lines[2].get_color()
    assert list(lines[2].get_ydata()) == [2, 2, 2]
    assert "2 logs, 33 lines" in capsys.readouterr().out


def test_a_pictures_letters_can_be_read_at_the_width_of_a_telephone(runs, tmp_path, monkeypatch):
    lines = [{"step": i, "loss": 2.0, "valid_loss": 2.5, "seconds": i} for i in range(3)]
    write(tmp_path / "a/supervised/log.jsonl", lines)
    pyplot, pages = plot.pyplot_of(""), []
    monkeypatch.setattr(pyplot, "close", pages.append)
    plot.main([*runs, "--out", str(tmp_path / "p.png")])
    page, = pages
    letters = [text for ax in page.axes for text in (ax.title, ax.xaxis.label)]
    letters += page.legends[0].get_texts()
    assert min(text.get_fontsize() / 72 for text in letters) / page.get_figwidth() * 400 >= 9
    assert letters[-1].get_text() == "dashed: held-out data"


def test_a_run_is_drawn_with_all_its_stages(runs, drawn, tmp_path):
    stage(tmp_path / "a/ppo", "ppo", 2)
    plot.main([str(tmp_path / "a"), runs[1], "--out", str(tmp_path / "p.png")])
    assert sorted(plot.logs_of([str(tmp_path / "a"), runs[1]])) == sorted(
        str(tmp_path / name) for name in ("a/supervised", "a/ppo", "b/ppo"))
    assert len(drawn[0]["reward model's score"]) == 2


def test_a_last_line_that_is_half_written_is_left_out(runs, drawn, tmp_path):
    with open(tmp_path / "b/ppo/log.jsonl", "a") as f:
        f.write('{"step": 3, "score": 9')
    plot.main([runs[1], "--out", str(tmp_path / "p.png")])
    assert list(drawn[0]["reward model's score"][0].get_xdata()) == [0, 1, 2]


@pytest.mark.parametrize("words, told", [
    (["nowhere"], "nowhere is no folder"), ([], "RUN"),
    (["{tmp}", "--out", "x.png"], "holds no stage with a log.jsonl"),
    (["{run}", "--out", "{run}/config.json/p.png"], "p.png cannot be written")])
def test_a_mistake_is_answered_in_one_line(runs, tmp_path, words, told):
    (tmp_path / "empty").mkdir()
    words = [word.format(tmp=tmp_path / "empty", run=runs[0]) for word in words]
    with pytest.raises(Problem, match=told) as found:
        plot.main(words)
    assert "\n" not in str(found.value)


def test_a_watched_run_is_drawn_again_with_its_new_lines(runs, drawn, tmp_path, monkeypatch):
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            raise KeyboardInterrupt
        stage(tmp_path / "b/ppo", "ppo", 5)
    monkeypatch.setattr(plot.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        plot.main([runs[1], "--out", str(tmp_path / "p.png"), "--watch", "0.5"])
    assert waited == [0.5, 0.5]
    assert [len(shown["length, tokens"][0].get_xdata()) for shown in drawn] == [3, 5]


def test_without_a_package_one_line_says_which(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Problem, match="pip install tensorboard"):
        plot.main([runs[0], "--out", str(tmp_path / "p.png"), "--tensorboard", str(tmp_path / "t")])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Problem, match="pip install matplotlib"):
        plot.main([runs[0], "--out", str(tmp_path / "p.png")])
    assert not (tmp_path / "p.png").exists() and not (tmp_path / "t").exists()


def test_tensorboard_gets_each_figure_of_each_line_once(runs, tmp_path, monkeypatch):
    """With a stand-in for the package, which is none of ours."""
    told = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def add_scalar(self, key, value, step, walltime):
            told.append((self.folder.name.rsplit("-", 1)[1], key, value, step))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard",
                        types.SimpleNamespace(SummaryWriter=SummaryWriter))
    done = {}
    plot.to_tensorboard(plot.logs_of(runs), tmp_path, done)
    assert ("ppo", "kl", 2.0, 2) in told and ("supervised", "loss", 2.0, 29) in told
    first = len(told)
    stage(tmp_path / "b/ppo", "ppo", 4)
    with open(tmp_path / "b/ppo/log.jsonl", "a") as f:
        f.write('{"step": 4, "event": "stopped", "why": "x"}\n')
    plot.to_tensorboard(plot.logs_of(runs), tmp_path, done)
    assert {(name, step) for name, _, _, step in told[first:]} == {("ppo", 3)}
    assert len(set(told)) == len(told)


# --------------------------------------------------------------------------- over-optimisation

def test_over_optimisation_is_measured_along_training_and_drawn(world, tmp_path, capsys,  # noqa: F811
                                                                monkeypatch):
    monkeypatch.setattr(plot, "POSTS", 6)
    found, draw = [], plot.draw_kl
    monkeypatch.setattr(plot, "draw_kl", lambda *drawn: [found.append(drawn), draw(*drawn)])
    ppo = str(world / "run/ppo")
    plot.main(["--kl", ppo, ppo, "--out", str(tmp_path / "p.png")])
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    (line, points, _), = found
    assert [point["step"] for point in line] == [0, 2, 4]
    assert line[0]["kl"] == line[1]["kl"] == 0 < line[2]["kl"]  # the snapshot is still supervised
    assert points == {"with a price: beta 0.05": line[2]}
    posts = sample.held_out(world / "data")
    posts = [posts[i] for i in plot.generator(0, "evaluate").permutation(len(posts))[:6]]
    networks = [sample.load_checkpoint(world / "run" / name) for name in ("ppo", "supervised")]
    texts, kl = evaluate.sample_with_kl(*networks, posts, 0.9, 0, "again")
    won = evaluate.the_judge(posts)[1].compare(posts, texts, [p["summary"] for p in posts])
    assert line[2]["kl"] == pytest.approx(kl.mean())
    assert line[2]["true"] == (won.mean(), *evaluate.bootstrap(won, 0)[1])
    assert 0 < line[2]["predicted"][1] <= line[2]["predicted"][0] <= line[2]["predicted"][2] < 1
    assert f"KL {kl.mean():.2f}" in capsys.readouterr().out


def test_over_optimisation_needs_policies(world, tmp_path):  # noqa: F811
    with pytest.raises(Problem, match="nowhere is no checkpoint folder"):
        plot.main(["--kl", "nowhere"])
    with pytest.raises(Problem, match="holds a reward model, not a policy"):
        plot.main(["--kl", str(world / "run/reward"), "--out", str(tmp_path / "p.png")])
    assert not (tmp_path / "p.png").exists()
