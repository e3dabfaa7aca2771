"""Starting stays cheap: nothing heavy is loaded before it is used."""

import json
import pkgutil
import subprocess
import sys

import macadam

HEAVY = [
    "numpy",
    "pyarrow",
    "duckdb",
    "pyiceberg",
    "sklearn",
    "scipy",
    "onnxruntime",
    "onnx",
    "skl2onnx",
    "pandas",
    "dbos",
    "torch",
    "ray",
]
_PROBE = """
import importlib, json, sys
seen = {}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    for module in sys.modules:
        seen.setdefault(module, name)
print(json.dumps(seen))
"""


def loaded_by(*modules: str) -> dict[str, str]:
    """Every module that is loaded after importing these in a fresh process → the one that brought it."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps(modules)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def own_modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(macadam.__path__, "macadam.")]
    return [name for name in found if ".migrations.versions" not in name and not name.endswith("__main__")]


def test_import_macadam_loads_nothing_but_the_standard_library() -> None:
    third_party = {*HEAVY, "msgspec", "sqlalchemy", "rich", "yaml", "httpx", "asyncio"}
    assert third_party.isdisjoint(loaded_by("macadam"))


def test_no_module_loads_a_heavy_package_when_it_is_imported() -> None:
    culprits = {heavy: by for heavy, by in loaded_by(*own_modules()).items() if heavy in HEAVY}
    assert culprits == {}


def test_the_command_line_loads_no_room_and_no_database_layer_to_say_help() -> None:
    code = (
        "import sys; from macadam.faces import cli; cli.main(['--help']); cli.main(['version']);"
        "print('LOADED', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert not loaded & {*HEAVY, "sqlalchemy", "rich", "yaml", "httpx", "cryptography", "cedarpy", "asyncio", "granian"}
    rooms = {"access", "ledger", "journal", "data", "features", "models", "serving", "governance", "delivery", "app"}
    assert not loaded & {f"macadam.{room}" for room in rooms}


def test_a_groups_help_loads_that_room_only() -> None:
    code = "import sys; from macadam.faces import cli; cli.main(['projects', '--help']); print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert "macadam.access.service" in loaded
    assert not loaded & {*HEAVY, "macadam.data", "macadam.models", "macadam.serving", "macadam.delivery"}
