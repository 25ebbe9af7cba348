"""What a rule on a key is, and the reasons that several rules share."""

from enum import Enum
from typing import Any, NamedTuple


class Verdict(Enum):
    HONOURED = "honoured"  # it acts as it does in transformers, or a value that cannot is refused
    HARMLESS = "harmless"  # it changes nothing here, whatever its value
    REFUSED = "refused"  # the model does not load, unless the value is a neutral one


HONOURED, HARMLESS, REFUSED = Verdict


class Rule(NamedTuple):
    """Keys with one verdict. `keys` are separated by spaces.

    `why` says what an honoured key does, why a harmless one changes nothing, or what to do about a refused one.
    `neutral` values of a refused key are harmless, and null always is. `unless` is a key of the same file and a value:
    where the file has that value, the keys are harmless.
    """

    keys: str
    verdict: Verdict
    why: str
    neutral: tuple[Any, ...] = ()
    unless: tuple[str, Any] | None = None


SPEED = "changes how transformers computes, not what"
OUTPUT = "says what transformers returns beside the answer"
TRAINING = "used in training only"
LABELS = "for models that classify"
SEQ2SEQ = "for models with an encoder"
NOTE = "a note of the program that wrote the file"
OTHER_WEIGHTS = "take a plain Llama, Qwen2, Qwen2.5 or Qwen3, or its version with experts"
PICTURES = "its sections are for pictures and films; in a text all of them have the same position"
SPECULATION = "for a draft model, which transformers is given beside this one"
ONE_ROTATION = "all layers turn alike here; write the settings themselves into the table if they are the same for all"
WITHOUT = "remove it to get the model's answers without it"
