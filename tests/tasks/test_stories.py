"""Stories: exact answers, solutions in GSM8K's form, sets that never share a plot, questions that are read back."""

from random import Random

import pytest

from lit_rl.tasks.changed_stories import change_number, read_story
from lit_rl.tasks.stories import (
    LARGEST_RESULT,
    OPENINGS,
    PARTS,
    QUESTIONS,
    STYLES,
    Story,
    StoryGrammar,
    answer,
    draw_story,
)
from lit_rl.tasks.story_problems import Stories
from lit_rl.tasks.tokenizers import story_tokenizer


def drawn(count=300, **grammar):
    return [draw_story(StoryGrammar(**grammar), Random(f"story/{number}")) for number in range(count)]


def problems(split="train", size=300, seed=0, **grammar):
    return Stories(StoryGrammar(**grammar), size, seed, lambda question, style: f"{style}\n\n{question}\n", split=split)


def part(text):
    (found,) = [each for each in PARTS if each.text.startswith(text)]
    return found


# 12 shells, 5 more, 2 of them to each of 4 friends.
MIA = Story(
    (part("{name} has"), part("{friend} gives"), part("{He} gives each"), part("How many {things} does {name}")),
    ((12,), (5,), (4, 2), ()),
    "Mia",
    "Ben",
    "shells",
)
# 3 bags of 6 pens, 9 dollars each, with a question of two sentences.
TOM = Story((part("{name} buys"), part("{He} sells them all")), ((3, 6), (5,)), "Tom", "Ann", "pens")


# --- stories and solutions -------------------------------------------------------------------------------------------


def test_a_story_is_told_in_plain_sentences():
    assert MIA.question == (
        "Mia has 12 shells. Ben gives her 5 more. She gives each of 4 friends 2 of them. How many shells does Mia have now?"
    )


def test_a_solution_is_a_line_for_each_step_and_the_answer_after_its_marker():
    assert MIA.solution("precise") == "12+5=17\n4*2=8\n17-8=9\n#### 9"
    assert TOM.solution("precise") == "3*6=18\n18*5=90\n#### 90"


def test_a_reflective_solution_says_the_sentence_that_a_step_follows_from():
    assert MIA.solution("reflective").splitlines() == [
        "Ben gives her 5 more. 12+5=17",
        "She gives each of 4 friends 2 of them. 4*2=8",
        "17-8=9",
        "#### 9",
    ]
    assert TOM.solution("reflective").splitlines() == [
        "Tom buys 3 bags of 6 pens. 3*6=18",
        "He sells them all for 5 dollars each. 18*5=90",
        "#### 90",
    ]


def test_answers_equal_those_of_running_totals():
    totals = {"": lambda total, amount: amount, "+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for story in drawn():
        total = 0
        for sign, numbers in story.operands:
            if numbers:
                amount = numbers[0] * numbers[1] if len(numbers) == 2 else numbers[0]
                assert sign != "/" or total % amount == 0
                total = totals[sign](total, amount)
                assert 1 <= total <= LARGEST_RESULT
        assert answer(story.operands) == total
        assert story.solution("precise").endswith(f"\n#### {total}")


def test_a_story_whose_results_are_not_whole_or_out_of_bounds_has_no_answer():
    assert answer([("", [12]), ("/", [5])]) is None
    assert answer([("", [4]), ("-", [4])]) is None
    assert answer([("", [20]), ("*", [5])]) is None
    assert answer([("", [20]), ("", [])]) is None  # nothing to work out
    assert answer([("", [20]), ("*", [4])]) == 80


def test_stories_have_the_operations_and_numbers_of_their_grammar():
    for story in drawn(min_operations=2, max_operations=2, largest=7):
        assert sum(each.num_operations for each in story.parts) == 2
        assert max(number for numbers in story.numbers for number in numbers) <= 9
        assert story.parts[0] in OPENINGS
        assert story.parts[-1] in QUESTIONS
    assert {sum(each.num_operations for each in story.parts) for story in drawn()} == {1, 2, 3}


def test_every_part_occurs():
    seen = {each for story in drawn(500) for each in story.parts}
    assert seen == set(PARTS)


def test_a_grammar_that_no_story_fits_is_refused():
    with pytest.raises(ValueError, match=r"^No story of 40 operations in 10000 draws; write fewer operations\. [^\n]*$"):
        draw_story(StoryGrammar(min_operations=40, max_operations=40), Random(0))
    with pytest.raises(ValueError, match=r"^StoryGrammar min_operations=3 max_operations=2: [^\n]*$"):
        StoryGrammar(min_operations=3, max_operations=2)
    with pytest.raises(ValueError, match=r"^StoryGrammar largest=100: write a number from 2 to 99\.$"):
        StoryGrammar(largest=100)


# --- changed questions -----------------------------------------------------------------------------------------------


def test_a_question_is_read_back():
    for story in drawn():
        assert read_story(story.question) == [(sign, list(numbers)) for sign, numbers in story.operands]


def test_a_text_that_is_not_a_story_is_not_read():
    assert read_story("Mia has 12 shells. Ben sings. How many shells does Mia have now?") is None
    assert change_number("Which is the largest number: 3 or 4?", Random(0)) is None


def test_one_number_is_changed_and_the_answer_follows():
    for story in drawn(100):
        changed, result = change_number(story.question, Random(story.question))
        old, new = (text.split() for text in (story.question, changed))
        differing = [(before, after) for before, after in zip(old, new, strict=True) if before != after]
        assert len(differing) == 1
        assert all(word.isdigit() for word in differing[0])
        assert result == answer(read_story(changed)) != answer(story.operands)


# --- problems and tokens ---------------------------------------------------------------------------------------------


def test_a_problem_is_asked_in_one_of_the_styles_and_solved_in_it():
    styles = set()
    for sample in problems():
        (style,) = [name for name, text in STYLES.items() if sample.prompt == f"{text}\n\n{sample.question}\n"]
        # A reflective solution has sentences, a precise one does not.
        assert ("." in sample.completion) == (style == "reflective")
        assert sample.completion.endswith(f"#### {sample.reference}")
        styles.add(style)
    assert styles == set(STYLES)


def plots(split, size):
    # Few enough plots that the sets would meet without being held apart.
    data = problems(split, size, min_operations=1, max_operations=1, largest=5)
    return {data._draw(number, set())[0] for number in range(size)}


def test_the_sets_share_no_plot():
    train, val, test = plots("train", 1000), plots("val", 100), plots("test", 100)
    assert min(map(len, (train, val, test))) > 30
    assert not train & (val | test)
    assert not val & test


def test_two_stories_of_one_plot_differ_in_words_alone():
    other = Story(MIA.parts, MIA.numbers, "Tom", "Eva", "pens")
    assert (other.plot == MIA.plot, other.question == MIA.question) == (True, False)
    assert Story(MIA.parts, ((12,), (5,), (2, 4), ()), "Mia", "Ben", "shells").plot != MIA.plot


def test_a_problem_is_a_function_of_seed_and_index():
    assert problems(seed=3)[7] == problems(seed=3)[7]
    assert problems(seed=3)[7].prompt != problems(seed=4)[7].prompt


def test_the_tokenizer_writes_every_problem_in_few_tokens():
    tokenizer = story_tokenizer()
    texts = [sample.prompt + sample.completion for sample in problems()]
    ids = tokenizer(texts)["input_ids"]
    assert tokenizer.batch_decode(ids) == texts
    # Words and digits are single tokens; the shortest text by characters has more than twice as many.
    assert max(map(len, ids)) < 130
    assert tokenizer.tokenize("Mia has 12 shells.") == ["Mia", " has", " ", "1", "2", " shells", "."]


def test_the_tokenizer_writes_any_text_of_ascii_characters():
    tokenizer = story_tokenizer()
    rng = Random(0)
    for text in [
        "Explain: why is 3 < 4?\n",
        *("".join(rng.choices(list(tokenizer.get_vocab())[3:], k=30)) for _ in range(200)),
    ]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
