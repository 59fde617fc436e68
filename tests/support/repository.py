"""Where things lie in the repository."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRACES = ROOT / "configs" / "traces"
DEMO_DATA = ROOT / "configs" / "data"


def python_example(page):
    """The one program that a page shows."""
    (text,) = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return text
