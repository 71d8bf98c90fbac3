import json
import re
from pathlib import Path

import pytest
import yaml

from phi3v.data.records import Place, parse_record
from phi3v.data.sources import _ITEM_KEYS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
RECORDS = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("text", RECORDS)
def test_the_records_of_the_page_are_good(text: str) -> None:
    assert parse_record(json.loads(text), Place("data.md", 0)).turns


def test_the_mixture_of_the_page_has_known_keys() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    items = yaml.safe_load(text)
    assert {key for item in items for key in item} <= set(_ITEM_KEYS)
    assert len(RECORDS) == 5
