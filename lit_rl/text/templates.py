"""Templates that ask a policy to reason about the next token of a text: seven, after arXiv 2506.08007, appendix B.

The templates differ in how much they explain. The paper trained with its v0, the plainest, and found that a model answers
more often right at the start with the longer templates. The wording is this project's own.
"""

from __future__ import annotations

BOX = r"\boxed{}"

_SPACES = (
    f"White space counts: where the next token begins with a space, write that space inside {BOX}. "
    r"Put the bare text there, without \text{} or quotation marks."
)

TEMPLATES = {
    "v0": f"""Continue the text below "### Context" by predicting its next token. Reason step by step, and put your final \
prediction into {BOX}. {_SPACES}

### Context
{{context}}""",
    "v1": f"""Below "### Context" a text breaks off. Which token comes next? List what could follow, compare how likely each \
is, and settle on one. End with your prediction in {BOX}. {_SPACES}

### Context
{{context}}""",
    "v2": f"""You are a language model that thinks before it predicts. Read the text below "### Context", work out where its \
argument is going, do any calculation that it calls for, and then predict the token that follows its last character. Give \
exactly one prediction, in {BOX}. {_SPACES}

### Context
{{context}}""",
    "v3": f"""Predict how the following text goes on.

### Context
{{context}}

### Task
First recall what the text is about and how it is written; then name several candidates for the next token and weigh them. \
Your last line holds the best one in {BOX}. {_SPACES}""",
    "v4": f"""### Context
{{context}}

### Instruction
The text above was cut between two tokens. Reason about its content, its grammar and its notation, and predict the token \
behind the cut. A token may be a word, a part of a word, a number, a sign or white space. Answer in {BOX}. {_SPACES}""",
    "v5": f"""Predict the next token of an unfinished text. How to go about it:
1. Say in a sentence what the text has established so far.
2. Say what has to come now: the rest of a word, the result of a calculation, a new clause.
3. Write down at least three candidates.
4. Choose one and put it into {BOX}.
{_SPACES}

### Context
{{context}}""",
    "v6": f"""Predict the next token of the text below "### Context". A prediction is right when it is the exact beginning of \
what really follows, up to the end of a token; it may be longer than one token where you are sure. Think step by step, \
question your first idea, and check that your prediction fits directly behind the last character of the text. Then give it in \
{BOX}, for example \\boxed{{ the}} or \\boxed{{42}}. {_SPACES}

### Context
{{context}}""",
}
"""Templates by name; the text replaces ``{context}``."""

DIRECT = "direct"
"""Name for no template: the policy continues the text itself."""


def check_template(template: str) -> None:
    """Refuse a text that is neither a template's name nor a template.

    Raises:
        ValueError: with the names and the form of a template.
    """
    if template not in (*TEMPLATES, DIRECT) and template.count("{context}") != 1:
        raise ValueError(
            f"model.template is {template[:40]!r}; write {', '.join(TEMPLATES)}, {DIRECT}, or a text that has {{context}} once."
        )


def fill_in(template: str, context: str) -> str:
    """Template, by its name or its text, with its context."""
    # Not `str.format`: templates and contexts may hold other braces.
    before, _, after = TEMPLATES.get(template, template).partition("{context}")
    return before + context + after
