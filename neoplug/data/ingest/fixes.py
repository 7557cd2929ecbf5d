"""What helps against each reason for which a row of a source is dropped; a fix follows from its reason."""

import re
from collections.abc import Iterable

MARK = "marks the answers with {% generation %}"
KEEP = "set data.keep_incomplete_rows: true to train on what is left of them"
FIXES = {  # pattern of the whole reason -> what helps
    # of `neoplug.data.encode.faults`
    r".* changes earlier text when .*": f"set data.train_on: last, or a chat_template that keeps turns or {MARK}",
    r".* changes the text up to the last answer .*": f"set a chat_template that keeps its text, or {MARK}",
    r".* its generation prompt, .*": f"set a chat_template whose turns begin as its generation prompt, or that {MARK}",
    r".* writes no assistant header .*": f"set a chat_template that {MARK}, or let a message of the user come first",
    r".* has no role `.*": f"rename the role in the rows, set a chat_template that names it, or {KEEP}",
    r".* leaves out .*": f"set a chat_template that shows it, remove it from the rows, or {KEEP}",
    r".* is excluded from the loss by the row": "remove these rows, or the mask of an answer",
    r"`\w+` of a turn is .*": "set it to 0 or 1",
    r"not JSON: .*": "write one JSON object per line, or one array in a .json file",
    r"not UTF-8": "save the file as UTF-8",
    r"half a character .*": "write such a character as it is, or as a pair of escapes",
    r".* but a row is an object of columns": 'write each row as an object of columns, such as {"text": "..."}',
    r"more fields than the header|not CSV: .*": "put fields with commas, quotes or line breaks in quotes",
    r"no messages|.* is \w+, not a list": "write a list, or a list in JSON, or map another column in data.columns",
    r"no (?!messages|assistant)\w+|empty \w+": "fill the column, or map another in data.columns",
    r"\w+ is \w+, not text": "map a column of text in data.columns",
    r"a message without a role": "give each message a role and a content, or `from` and `value`",
    r"a message without content": "give each message a content; an answer may have tool_calls instead",
    r"a message whose content is not text": "remove these rows: only text is supported, no images",
    r"an empty answer": "remove these rows, or give each answer a content",
    r"no assistant turn, .*": "set data.train_on: all to train on the whole text, or add the answers",
    r".*arguments are text.*": "write the arguments as an object, or as an object in JSON",
    r"a tool that is text.*|tool_calls is .*": "write each tool and call as an object, or as an object in JSON",
    r"a system turn, and .*": "remove one of the two",
    r"history is .*": "write pairs [question, answer], or messages",
    r"completion is a list of messages.*": "write both as lists of messages, or both as texts",
    r"chat_template_kwargs is .*": "write it as an object of options of the chat template",
    r".* that cannot be hashed .*": "write NaN and infinity as null or as text",
    r"\w+ cannot be read: .*|\w+ is not JSON: .*": "repair the value, or map another column in data.columns",
    r"refused by the chat template: .*": "change the rows so that the template accepts them, or set data.chat_template",
    r"refused by the teacher's chat template: .*": "change the rows, or set or remove teacher.chat_template",
    r"\d+ answers, of which the teacher's .*|the teacher's template .*": "set or remove teacher.chat_template",
    r"no answer token left within max_length": "set a larger data.max_length",
}


def fixes_of(reasons: Iterable[str]) -> list[str]:
    """Return what helps against the reasons, in their order, each once; nothing for a reason that is not in FIXES."""
    found = (
        next((fix for known, fix in FIXES.items() if re.fullmatch(known, reason, re.DOTALL)), "") for reason in reasons
    )
    return [fix for fix in dict.fromkeys(found) if fix]
