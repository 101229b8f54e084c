"""What PyYAML says of a text that is none, as a sentence with a remedy."""

from __future__ import annotations

import yaml

from lrft.recipe.tree import shown

# PyYAML notices these at the end of the text; what began them is more telling.
UNCLOSED = ("while scanning a quoted", "while scanning a simple key", "while parsing a flow")
_REMEDIES = {
    r"'\t'": "a tab; indent with spaces",
    "mapping values are not allowed": "a second colon on one line; quote the value, or check the indentation",
    "could not find expected ':'": "expected `key: value` with a colon after the key",
    "expected <block end>": "the indentation does not line up with the lines above",
    "expected ',' or": "a bracket or brace is not closed, or a comma is missing",
    "expected the node content": "a value is missing between brackets, or a bracket is not closed",
    "found unexpected end of stream": "a quote is not closed",
    "undefined alias": "the alias *name has no &name before it; quote text that starts with *",
    "another document": "more than one document; remove the `---` lines",
}


def sentence_of(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's words as a sentence with a remedy."""
    problem = error.problem or str(error)
    for sign, sentence in _REMEDIES.items():
        if sign in problem:
            return f"not valid YAML: {sentence}"
    return f"not valid YAML: {shown(problem)[1:-1]}; quote the value if it holds special characters"
