"""Tables of a comparison."""

from lit_rl.evaluation.compare import compare
from lit_rl.evaluation.questions import QuestionResult
from lit_rl.reports.comparison import LISTED, markdown, show


def results(right: list[bool]) -> list[QuestionResult]:
    return [QuestionResult(n, "q", "1", "", None, each, tokens=n, sampled_right=[each]) for n, each in enumerate(right)]


REPORT = compare({"base": results([True, False, False, False]), "sft": results([False, True, True, False])})


def test_the_table_has_a_column_for_each_policy_and_a_line_for_each_pair():
    lines = markdown(REPORT).splitlines()
    assert lines[0] == "| metric | base | sft |"
    assert lines[2] == "| accuracy | 25.0 (4.6 to 69.9) | 50.0 (15.0 to 85.0) |"
    assert [line.split(" | ")[0] for line in lines[3:9]] == [
        "| maj@1",
        "| pass@1",
        "| answered",
        "| truncated",
        "| mean tokens",
        "",
    ]
    assert "| sft - base | accuracy | +25.0 (-46.1 to +74.7) | 2 | 1 | 1 |" in lines


def test_changed_questions_are_listed_by_their_numbers():
    text = markdown(REPORT)
    assert "- sft gains questions 1, 2 against base." in text
    assert "- sft loses questions 0 against base." in text


def test_a_long_list_is_cut():
    many = 2 * LISTED
    report = compare({"base": results([False] * many), "sft": results([True] * many)})
    assert f", {LISTED - 1} and {LISTED} more against base." in markdown(report)


def test_questions_that_were_left_out_are_told():
    report = compare({"base": results([True, True]), "sft": results([True])})
    assert "- Questions: 1; 1 that some policies were not asked are left out." in markdown(report)


def test_a_file_gets_the_markdown(capsys):
    show(REPORT)
    assert capsys.readouterr().out == markdown(REPORT) + "\n"
