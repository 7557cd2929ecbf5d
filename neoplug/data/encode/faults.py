"""Why a chat template cannot render a row as it is meant, and what is reported of rows that are kept.

Reasons are equal for all rows with the same fault, since rows are counted by reason. Text in braces is filled in.
"""

CHANGES_EARLIER_TEXT = "changes earlier text when a turn is added, so that no answer can be located"
CHANGES_PROMPT = "changes the text up to the last answer when a turn is added, so that it cannot be located"
OPENS_MORE = "opens {0!r} in its generation prompt, with which the answer does not begin"
NO_HEADER = "writes no assistant header before a first answer"
LEAVES_OUT = "leaves out {0}"
NO_ROLE = "has no role {0}"
REFUSED = "refused by {0}: {1}"
MASKED = "answer is excluded from the loss by the row"
NOT_A_MASK = "of a turn is {0!r}, but a turn is in the loss (1, true) or not (0, false)"

# What is reported of rows that are kept.
END_ADDED = "with {0} added, since the chat template ends the last answer with no stop token"
NO_END = "with an answer that no stop token ends"
THOUGHT_LEFT_OUT = "of which {0} leaves out a thought of a turn that is not scored"
