"""Runs a witness: python -m macadam_witness --directory DIR --logs FILE [--name NAME] [--host ADDRESS] [--port PORT]

Needs Python and `cryptography`; imports nothing of Macadam, so that somebody else can run it, which is the point. The
directory holds its key and what it has seen: back it up, and never run two on one. FILE holds the verifier keys of the
logs, a line each, got from their operators; it is read again when it changes. Its own key is the first line it prints:
hand that to the logs and to whoever verifies them. Exit code: 0 stopped, 1 it cannot work, 2 the call is wrong.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from macadam_witness.memory import Memory, Unusable
from macadam_witness.notes import Malformed
from macadam_witness.server import serve
from macadam_witness.witness import Logs, Witness


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that `run` takes."""
    parser.add_argument("--directory", type=Path, required=True, help="for its key and what it has seen")
    parser.add_argument("--logs", type=Path, required=True, help="file with the verifier keys of the logs, one a line")
    parser.add_argument("--name", default="", help="of a new witness, such as witness.example.org/1")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=8490, help="default: 8490; 0 takes a free one")


def run(directory: Path, logs: Path, *, name: str = "", host: str = "127.0.0.1", port: int = 8490) -> None:
    """Until SIGTERM or SIGINT. Raises Unusable, Malformed or OSError if it cannot begin."""
    known = Logs(logs)
    memory = Memory(directory, name)
    try:
        witness = Witness(memory, known, time.time)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        serve(witness, host, port, lambda listening: _announce(witness.verifier, host, listening))
    except KeyboardInterrupt:
        pass  # asked to stop; what was cosigned is durable already
    finally:
        memory.close()


def _announce(verifier: str, host: str, port: int) -> None:
    sys.stdout.write(json.dumps({"key": verifier, "url": f"http://{host}:{port}"}) + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="macadam_witness", description="Cosigns logs that only grow.")
    configure(parser)
    options = parser.parse_args(arguments)
    try:
        run(options.directory, options.logs, name=options.name, host=options.host, port=options.port)
    except (Unusable, Malformed, OSError) as error:
        sys.stderr.write(f"macadam_witness: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
