"""Nothing is unpickled, nothing reaches the network, random numbers have a purpose."""

import ast
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import deconfound

SOURCE = Path(deconfound.__file__).parent
ROOT = Path(__file__).parents[2]
FILES = sorted(SOURCE.rglob("*.py"))
EVERY_FILE = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal",
    "requests", "urllib.request", "http.client", "ftplib", "telnetlib", "socket", "aiohttp",
    "httpx", "random",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle",
    "joblib.load", "torch.hub.load", "eval", "exec", "os.system",
}  # fmt: skip
CSV = re.compile(r"\.to_csv$|^(csv\.)?(writer|DictWriter)$|\.(write_csv|savetxt)$|^savetxt$")
RANDOM = re.compile(r"^(np|numpy)\.random\.(?!Generator$)|^torch\.(seed|random\.)|^random\.")


def name_of(node: ast.expr) -> str:
    """The dotted name of an expression: "np.random.rand"; empty if it has none."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(text: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            yield name_of(node.func), node


def has(call: ast.Call, keyword: str, value: object) -> bool:
    return any(
        one.arg == keyword and isinstance(one.value, ast.Constant) and one.value.value is value
        for one in call.keywords
    )


def forbidden_modules(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
    return [name for name in found if name in FORBIDDEN_MODULES]


def unsafe_calls(text: str) -> list[str]:
    found = []
    for name, call in calls(text):
        unsafe = name in FORBIDDEN_CALLS
        unsafe |= name == "torch.load" and not has(call, "weights_only", True)
        unsafe |= name in ("np.load", "numpy.load") and not has(call, "allow_pickle", False)
        unsafe |= name.startswith("subprocess.") and has(call, "shell", True)
        if unsafe:
            found.append(name)
    return found


def writes_csv(text: str) -> list[str]:
    return [name for name, _ in calls(text) if CSV.search(name)]


def unseeded(text: str) -> list[str]:
    return [name for name, _ in calls(text) if RANDOM.match(name)]


@EVERY_FILE
def test_nothing_is_unpickled_or_fetched(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert forbidden_modules(text) == []
    assert unsafe_calls(text) == []


@EVERY_FILE
def test_random_numbers_come_from_streams(file: Path) -> None:
    if file.name != "seeds.py":
        assert unseeded(file.read_text(encoding="utf-8")) == []


@EVERY_FILE
def test_csv_is_written_where_formulas_are_marked(file: Path) -> None:
    if file.name != "escaping.py":
        assert writes_csv(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("guard", "text"),
    [
        (forbidden_modules, "import pickle"),
        (forbidden_modules, "def f():\n    from urllib import request"),
        (forbidden_modules, "import random"),
        (unsafe_calls, "torch.load(f)"),
        (unsafe_calls, "torch.load(f, weights_only=False)"),
        (unsafe_calls, "np.load(f, mmap_mode='r')"),
        (unsafe_calls, "yaml.load(f)"),
        (unsafe_calls, "subprocess.run('ls', shell=True)"),
        (writes_csv, "table[names].to_csv(f)"),
        (writes_csv, "csv.DictWriter(f, names)"),
        (writes_csv, "from csv import writer\nwriter(f).writerow(row)"),
        (unseeded, "np.random.rand(3)"),
        (unseeded, "np.random.default_rng()"),
    ],
)
def test_the_guards_see_what_they_guard_against(
    guard: Callable[[str], list[str]], text: str
) -> None:
    assert guard(text)


def test_the_guards_let_safe_calls_pass() -> None:
    text = "torch.load(f, weights_only=True); np.load(f, allow_pickle=False); yaml.safe_load(f)"
    assert not unsafe_calls(text)


def test_tests_reach_no_network() -> None:
    """Addresses of documentation (RFC 5737): nothing answers there, and nothing is asked."""
    with pytest.raises(RuntimeError, match="tests use no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with socket.socket() as connection, pytest.raises(RuntimeError, match="no network"):
        connection.connect_ex(("198.51.100.7", 443))


def test_tests_may_talk_to_themselves() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_no_file_names_a_package_index() -> None:
    """Where packages come from is the user's setting, not ours."""
    known = ["files.python" + "hosted.org", "pypi" + ".org", "download.py" + "torch.org"]
    known += ["--index" + "-url", "--extra-index" + "-url", "--find" + "-links"]
    kinds = {".py", ".txt", ".toml", ".md", ".yaml", ".yml", ".cfg", ".ini", ".lock", ".json", ""}
    named = []
    for file in files_of_the_repository():
        if file.suffix in kinds:
            text = file.read_text(encoding="utf-8", errors="ignore")
            named += [f"{file.name}: {one}" for one in known if one in text]
    assert named == []


def files_of_the_repository() -> Iterator[Path]:
    for folder in ("src", "tests", "docs", "recipes", "benchmarks", ".ci"):
        yield from (file for file in (ROOT / folder).rglob("*") if file.is_file())
    yield from (file for file in ROOT.iterdir() if file.is_file())


def test_requirements_are_names_and_versions() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines]
    form = r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ;]+( *;.+)?|--hash=sha256:[0-9a-f]{64} *\\?"
    assert [line for line in wanted if line and not re.fullmatch(form, line.rstrip(" \\"))] == []
    assert any(line.startswith("torch==") for line in wanted)
