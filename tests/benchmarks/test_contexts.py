"""The longest sample that trains is found, by runs that really are held to so much memory."""

import pytest

from benchmarks.contexts import QLORA, Trial, longest
from sft.training.memory import GIB


class UpTo:
    """Trains samples of up to so many tokens."""

    def __init__(self, tokens: int):
        self.tokens, self.predicted, self.tried = tokens, "", []

    def __call__(self, tokens: int) -> bool:
        self.tried.append(tokens)
        if tokens <= self.tokens:
            self.predicted = f"of {tokens}"
        return tokens <= self.tokens


@pytest.mark.parametrize(("guess", "growth"), [(128, 2.0), (44_928, 1.1), (128, 1.1)])
@pytest.mark.parametrize("most", [127, 128, 5000, 78_475])
def test_the_longest_is_found_from_any_guess(most, guess, growth):
    trains = UpTo(most)
    found, predicted = longest(trains, guess, growth=growth)
    assert found <= most < found + max(256, found // 15)
    assert predicted == (f"of {found}" if found else "")
    assert len(trains.tried) == len(set(trains.tried)) < 80
    assert len(trains.tried) < 20 or growth == 1.1


@pytest.mark.long
def test_a_run_is_held_to_its_memory(tiny_model):
    keys = QLORA | {"dtype": "float32", "bf16": False, "lora_r": 4}
    plenty = Trial(tiny_model, keys, 4 * GIB)
    assert plenty(200)
    assert float(plenty.predicted) > 0
    assert not Trial(tiny_model, keys, 3 * GIB // 8)(200)  # with much less Python may not even come to say so
