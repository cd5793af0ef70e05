"""What an answer is worth, by the stars that its review has."""

import re
from typing import Any

MEANT = {1: "negative", 2: "negative", 3: "mixed", 4: "positive", 5: "positive"}


def sentiment(row: dict[str, Any], answer: str) -> tuple[bool, str]:
    """Whether the first of the three words that the answer has is the right one."""
    said = re.search(r"positive|negative|mixed", answer.lower())
    meant = MEANT[row["rating"]]
    return said is not None and said[0] == meant, f"{row['rating']} stars are {meant}"
