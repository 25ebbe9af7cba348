"""How wrong the pocket model's answers were as it trained: the logs of its runs, for the book's picture.

    python bench/pocket_training.py runs/target/log.jsonl runs/target2/log.jsonl …

Reads the logs that `tiny-llm pocket train` left, in the order of the runs, and writes the measured errors into
book/figures/data/pocket_training.json: of each measurement the tokens trained so far, the stage, and by family of
lessons the share of answers with a token that the model would not have chosen, given the right tokens before it. A
stage's first measurement, and those that say the same as the one before, are left out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "book" / "figures" / "data" / "pocket_training.json"


def measured(logs: list[Path]) -> list[dict[str, Any]]:
    """Return the measurements of all logs, later runs last."""
    found: list[dict[str, Any]] = []
    for log in logs:
        stage = ""
        for line in log.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if "errors" not in entry:
                continue
            errors = {family: round(share, 3) for family, share in entry["errors"].items()}
            first, stage = entry["stage"] != stage, entry["stage"]
            if found and (first or errors == found[-1]["errors"]):
                continue
            found.append({"tokens": entry["tokens"], "stage": stage, "errors": errors})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path)
    measurements = measured(parser.parse_args().logs)
    lines = ",\n".join(json.dumps(one) for one in measurements)
    DATA.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{DATA.name}: {len(measurements)} measurements")


if __name__ == "__main__":
    main()
