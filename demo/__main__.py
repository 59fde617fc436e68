"""`python -m demo [--record FILE.svg]`, from the root of the repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo.recording import animate
from demo.screen import Screen
from demo.story import play
from gpu_actor.contract.errors import LorayError
from orchestrator.cli.app import exit_code, tell
from orchestrator.cli.stop_signals import stop_code


def main() -> int:
    """Play the demo; 0 when everything went as it is told."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Watch adapters train together.")
    parser.add_argument("--record", type=Path, metavar="FILE.svg", help="also draw what a terminal shows")
    arguments = parser.parse_args()
    screen = Screen(recorded=arguments.record is not None)
    try:
        with screen:
            play(screen)
    except KeyboardInterrupt as stop:
        return stop_code(stop)
    except LorayError as error:
        tell(error)
        return exit_code(error)
    if arguments.record is not None:
        arguments.record.write_text(animate(screen.frames), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
