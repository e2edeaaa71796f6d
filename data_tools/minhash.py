"""Finds conversations that are nearly alike, by MinHash over their runs of three characters.

Knows nothing about files. What is compared is what user and assistant say: a system message that all rows share would
make all of them alike. Method: Broder 1997, "On the resemblance and containment of documents"; rensa implements it.
"""

import re

from rensa import RMinHash, RMinHashDeduplicator

# Runs of three characters tell sentences apart in Chinese as in English.
SHINGLE = 3
# The estimate's standard error is sqrt(s (1 - s) / PERMUTATIONS): 0.03 at a similarity of 0.9.
PERMUTATIONS = 128
SEED = 0
# How surely a pair of exactly the asked similarity is looked at at all.
RECALL = 0.99


class NearDuplicates:
    """Remembers a sketch of each new conversation, and knows the ones nearly like it again."""

    def __init__(self, similarity: float):
        bands = fewest_bands(similarity)
        self._seen = RMinHashDeduplicator(similarity, PERMUTATIONS, use_lsh=True, num_bands=bands, seed=SEED)

    def first_like(self, number: int, messages: list[dict]) -> int | None:
        """The number of an earlier conversation nearly like this one; without one, None, and this one is remembered."""
        sketch = RMinHash(PERMUTATIONS, seed=SEED)
        sketch.update(shingles(spoken(messages)))
        if alike := self._seen.get_duplicates(sketch):
            return min(map(int, alike))
        self._seen.add(str(number), sketch)
        return None


def fewest_bands(similarity: float) -> int:
    """In how many bands to look for equal ones: few take less memory, many find more pairs."""
    bands = 8
    while bands < PERMUTATIONS and 1 - (1 - similarity ** (PERMUTATIONS // bands)) ** bands < RECALL:
        bands *= 2
    return bands


def spoken(messages: list[dict]) -> str:
    """What user and assistant say, without case, spaces and punctuation."""
    said = "\n".join(message["content"] for message in messages if message["role"] != "system")
    return re.sub(r"[\W_]+", "", said.lower()) or said


def shingles(text: str) -> list[str]:
    """All runs of three characters; a shorter text is one."""
    return [text[start : start + SHINGLE] for start in range(max(len(text) - SHINGLE + 1, 1))]
