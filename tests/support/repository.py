"""Where things lie in the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TRACES = ROOT / "configs" / "traces"
DEMO_DATA = ROOT / "configs" / "data"
