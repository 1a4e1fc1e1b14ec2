"""The demo shows the scores of Regime W, and says what each of them is."""

import pytest
from tiny_runs import lit_rl, refusal

from lit_rl.cli.demo import COLUMNS


def test_the_demo_of_regime_w_shows_all_scores_and_explains_them(capsys):
    lit_rl("demo", "regime_w")
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:21].strip(): line[21:].split() for line in lines}
    assert rows["four answers"] == list(COLUMNS)
    shown = {title: [float(value) for value in rows[title]] for title in ("all right", "all wrong alike")}
    assert shown["all right"] == pytest.approx([1, 1, 1, 0.5, 0.85, 0, 1.595, *[1.595] * 4], abs=0.051)
    assert shown["all wrong alike"] == pytest.approx([0, 1, 1, 0.5, 0.85, 0, 0.095, *[0.095] * 4], abs=0.051)
    assert rows["right, two follow"][3] == "0.50"
    explained = [line.split()[0] for line in lines[-len(COLUMNS) :]]
    assert explained == list(COLUMNS)


@pytest.mark.parametrize("args", [[], ["regime"], ["regime_w", "more"]])
def test_another_demo_is_refused(args):
    assert "write lit-rl demo regime_w" in refusal("demo", *args)
