"""The pages of docs/ and DEVELOP.md: every name exists, every link resolves, every page has its form."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from support.builders import RLE, Element, Fragments, dicom, element, image
from tree.graph import CORE, PACKAGE, ROOT
from tree.test_imports import DOORS, FLOORS
from voxtier import _core
from voxtier.frames import TableResult, read_table
from voxtier.tensors import manifest
from voxtier.tensors.states import FIXABLE

DOCS = ROOT / "docs"
PAGES = [ROOT / "DEVELOP.md", *sorted(DOCS.rglob("*.md"))]
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
SECTIONS = ["Context", "Choice", "Cost", "Evidence"]
SOURCES = ("python", "rust/src", "rust/fuzz/properties", "rust/examples", "tests", "benches", "examples")
# A path in a page is meant from one of these folders.
ROOTS = (ROOT, PACKAGE, CORE)
FILE_ENDINGS = (".py", ".pyi", ".rs", ".sql", ".md", ".toml")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_words(page: Path) -> set[str]:
    """Return what stands between single backticks, on one line, outside fenced blocks."""
    return set(re.findall(r"`([^`\n]+)`", prose(page)))


@cache
def source_files() -> list[Path]:
    found = [path for folder in SOURCES for path in (ROOT / folder).rglob("*")]
    kinds = (".py", ".pyi", ".rs", ".sql")
    return [path for path in found if path.suffix in kinds and path.is_file() and path != Path(__file__)]


@cache
def sources() -> str:
    """Return all sources in one text."""
    return "\n".join(path.read_text() for path in source_files())


@cache
def words() -> frozenset[str]:
    """Return every identifier of the sources and of the files beside them."""
    beside = [(ROOT / name).read_text() for name in ("Makefile", "pyproject.toml", "Cargo.toml")]
    return frozenset(re.findall(r"\w+", "\n".join([sources(), *beside])))


@cache
def defined() -> frozenset[str]:
    """Return every function, class and type that Python, Rust and SQL define or import by name."""
    found: set[str] = set()
    for path in source_files():
        text = path.read_text()
        if path.suffix in (".py", ".pyi"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    found.add(node.name)
                elif isinstance(node, ast.ImportFrom | ast.Import):
                    found |= {alias.asname or alias.name.rpartition(".")[2] for alias in node.names}
        else:
            kinds = r"fn|struct|enum|trait|type|const|static|mod|FUNCTION|TABLE|VIEW|TYPE"
            found |= set(re.findall(rf"\b(?:{kinds})\s+(?:voxtier\.)?(\w+)", text))
            found |= set(re.findall(r"^\s+(?:pub )?(\w+)(?:: | = |,$| \{|\()", text, re.MULTILINE))
    return frozenset(found)


def path_exists(written: str) -> bool:
    """Return whether a path is in the tree, or below a folder that is made there and ignored by git."""
    ignored = set((ROOT / ".gitignore").read_text().split())
    above = (f"/{'/'.join(written.split('/')[:count])}/" for count in range(1, written.count("/") + 2))
    return not ignored.isdisjoint(above) or any((root / written).exists() for root in ROOTS)


def is_path(word: str) -> bool:
    """Return whether a word means a file or folder of this tree (and not one of a store or a cache)."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", word):
        return False
    if "/" not in word:
        return word.endswith(FILE_ENDINGS)
    return any((root / word.split("/")[0]).is_dir() for root in ROOTS)


def python_name_exists(dotted: str) -> bool:
    """Return whether ``voxtier.a.b.Name.method`` is a module of the package, or a name in one."""
    parts = dotted.split(".")[1:]
    for count in range(len(parts), -1, -1):
        place = PACKAGE.joinpath(*parts[:count])
        files = [place / "__init__.py", place.with_suffix(".py"), place.with_suffix(".pyi")]
        if file := next((file for file in files if file.is_file()), None):
            rest, text = parts[count:], file.read_text()
            return all(re.search(rf"\b{re.escape(part)}\b", text) for part in rest)
    return False


def fault(word: str) -> str | None:
    """Return why a word of a page names nothing in this tree; None where it does, or is no name."""
    if is_path(word):
        known = path_exists(word) or ("/" not in word and any(p.name == word for p in source_files()))
        return None if known else "no such file"
    if re.fullmatch(r"make [\w-]+", word):
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return None if word.split()[1] in targets else "no such target of the Makefile"
    if re.fullmatch(r"voxtier(\.\w+)+(\(\))?", word):
        name = word.removesuffix("()")
        is_known = python_name_exists(name) or re.search(rf"\b{re.escape(name)}\b", sources())
        return None if is_known else "no such module, name or table"
    if re.fullmatch(r"\w+(::\w+)+(\(\))?", word):
        parts = word.removesuffix("()").split("::")
        missing = [part for part in parts if not (part in defined() or part in modules())]
        return f"no {missing[0]} in the core" if missing else None
    if re.fullmatch(r"(\w+\.)?_*[a-z]\w*\(\)", word):
        missing = [part for part in word.removesuffix("()").split(".") if not is_written(part)]
        missing += [] if word.removesuffix("()").split(".")[-1] in defined() else [word]
        return f"nobody defines {missing[0]}" if missing else None
    if re.fullmatch(r"[A-Z][a-z0-9]+(?:[A-Z]\w*)+(\.\w+)?", word):
        missing = [part for part in word.split(".") if not is_written(part)]
        return f"nobody defines {missing[0]}" if missing else None
    if re.fullmatch(r"_*[A-Za-z]\w*_\w+", word):
        return None if word in words() else "the word occurs in no source"
    return None


def is_written(word: str) -> bool:
    """Return whether a word is an identifier anywhere, without a union of both large sets for each word."""
    return word in words() or word in defined()


@cache
def modules() -> frozenset[str]:
    """Return the names of the core's files and folders."""
    names = {name for path in CORE.rglob("*") for name in (path.stem, path.parent.name)}
    return frozenset({"crate", "super"} | names)


def faults(found: dict[Path, set[str]]) -> dict[str, dict[str, str]]:
    """Return the words that name nothing, with the reason, by page."""
    wrong = {
        name_of(page): {word: why for word in sorted(each) if (why := fault(word))}
        for page, each in found.items()
    }
    return {page: why for page, why in wrong.items() if why}


def test_every_name_in_backticks_exists() -> None:
    assert faults({page: code_words(page) for page in PAGES}) == {}


def test_every_file_in_a_drawing_exists() -> None:
    """A drawing names files by their path, or by their name where the line before it has the folder."""
    found = {}
    for page in PAGES:
        drawings = re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        found[page] = {
            word for drawing in drawings for word in re.findall(r"[\w./-]+\.(?:py|rs|sql)\b", drawing)
        }
    assert any(found.values())
    assert faults(found) == {}


def test_names_that_do_not_exist_are_found() -> None:
    """The rule above must be able to fail, one word of each kind."""
    gone = ["frames/gone.py", "gone.rs", "make gone", "voxtier.frames.gone", "frames::gone", "gone()"]
    gone += ["Frame" + "Gone", "test_" + "gone_with_the_wind"]
    assert [word for word in gone if not fault(word)] == []
    there = ["frames/dicom/table.py", "lib.rs", "make test", "voxtier.frames.FrameReader", "frames::table"]
    there += ["read_table()", "FrameReader", "frame_count", "1.2.840", "x < 5", "image/jpeg"]
    assert [word for word in there if fault(word)] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_relative_links_resolve() -> None:
    for page in [*PAGES, ROOT / "README.md", ROOT / "SECURITY.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if re.match(r"[a-z]+:", target):
                continue
            place, _, anchor = target.partition("#")
            other = (page.parent / place).resolve() if place else page
            said = f"{name_of(page)} links to {target}"
            assert other.exists(), said
            assert not anchor or anchor in anchors(other), f"{said}: no such heading"


def test_a_decision_has_its_four_sections() -> None:
    for page in DECISIONS:
        text = page.read_text()
        lines = text.splitlines()
        assert re.fullmatch(r"# \d{3} .+", lines[0]), page.name
        assert lines[0].split()[1] == page.name[:3]
        assert re.fullmatch(r"20\d\d-\d\d-\d\d · .+", lines[2]), page.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS, page.name
        assert len(lines) <= 30, page.name
        for section in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
            assert section.strip(), f"{page.name} has an empty section"


def test_a_decision_names_its_evidence() -> None:
    """A test, a bench, or a table of measurements: something that can be run again."""
    for page in DECISIONS:
        evidence = page.read_text().partition("## Evidence")[2]
        assert re.search(r"`(tests|benches|rust)/[^`]+`|\]\(\.\./benchmarks\.md", evidence), page.name


def test_decisions_are_numbered_and_listed() -> None:
    numbers = [int(page.name[:3]) for page in DECISIONS]
    # A decision that no longer holds is removed, and its number is not used again.
    assert numbers == sorted(set(numbers))
    index = (DOCS / "decisions" / "README.md").read_text()
    assert re.findall(r"\]\((\d{3}-[\w-]+\.md)\)", index) and sorted(
        re.findall(r"\]\((\d{3}-[\w-]+\.md)\)", index)
    ) == [page.name for page in DECISIONS]


def table(page: str, heading: str) -> dict[str, str]:
    """Return the second column of the table whose header begins with a word, by its first column."""
    block = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", (DOCS / page).read_text(), re.MULTILINE)
    assert block is not None, f"{page} has no table of {heading}"
    rows = [line.strip("| \n").split(" | ") for line in block[1].splitlines()]
    return {row[0]: row[1] for row in rows}


def test_the_floors_are_those_that_are_enforced() -> None:
    written = {
        room: [set(floor.split(", ")) for floor in floors.split("; ")]
        for room, floors in table("architecture.md", "room").items()
    }
    assert written == FLOORS


def test_the_doors_are_those_that_are_enforced() -> None:
    written = {
        system: set(re.findall("`([^`]+)`", doors))
        for system, doors in table("architecture.md", "system").items()
    }
    assert written == DOORS | {"pyo3": {"rust/src/python/"}}


def test_develop_is_short() -> None:
    assert len((ROOT / "DEVELOP.md").read_text().splitlines()) <= 80


def glossary() -> list[tuple[str, str, str, str]]:
    """Return the rows of the glossary: word, meaning, file, test."""
    rows = []
    for line in (DOCS / "glossary.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 4 and cells[0] != "word" and set(cells[0]) != {"-"}:
            rows.append((cells[0], cells[1], cells[2], cells[3]))
    return rows


def plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())


@pytest.mark.parametrize("row", glossary(), ids=lambda row: row[0])
def test_a_word_of_the_glossary_names_a_file_and_a_test(row: tuple[str, str, str, str]) -> None:
    word, meaning, file, test = row
    assert meaning
    files, tests = re.findall(r"`([^`]+)`", file), re.findall(r"`([^`]+)`", test)
    assert files and tests
    assert all(path_exists(each) for each in [*files, *(each for each in tests if "/" in each)])
    for each in tests:
        in_rust = any((root / each).is_file() and each.endswith(".rs") for root in ROOTS)
        assert each.startswith(("tests/", "test_")) or in_rust, f"{each} is no test"
        if in_rust:
            assert "#[test]" in next((r / each).read_text() for r in ROOTS if (r / each).is_file())
    texts = [*files, *(path.read_text() for each in files for path in _below(each))]
    spellings = [plain(spelling) for spelling in word.split(" / ")]
    assert any(spelling in plain(text) for text in texts for spelling in spellings), f"no {word} in {files}"


def _below(written: str) -> list[Path]:
    place = next(root / written for root in ROOTS if (root / written).exists())
    return [place] if place.is_file() else [path for path in place.rglob("*") if path in set(source_files())]


def hex_example(page: str, name: str) -> str:
    """Return the digits of an annotated example; each line says where its bytes begin."""
    block = re.search(rf"^```hex {name}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None, f"{page} has no example {name}"
    digits = ""
    for line in block[1].splitlines():
        place, shown = line.split("  ")[:2]
        assert int(place, 16) == len(digits) // 2, f"{name}: {line}"
        digits += shown.replace(" ", "")
    return digits


def fragments_of_the_example() -> bytes:
    payloads = [bytes(length) for length in (100, 200, 6, 86)]
    return dicom([*image(frames=4), element("PixelData", Fragments(payloads), "OB")], RLE).content


def native_of_the_example() -> bytes:
    """Three frames of 512 KiB at byte 1352."""
    attributes = image(rows=512, columns=512, bits=16, frames=3)
    bare = len(dicom([*attributes, element("PixelData", b"")]).content)
    gap = Element(0x00291010, "OB", bytes(1352 - bare - 12))
    return dicom([*attributes, gap, element("PixelData", bytes(3 * 524_288))]).content


def test_examples_of_packed_tables_are_what_the_code_writes() -> None:
    page = "formats/packed-table.md"
    fragments = read_table(fragments_of_the_example(), verify="all")
    assert hex_example(page, "fragments") == fragments.packed.hex()
    assert hex_example(page, "record") == fragments.to_bytes().hex()
    assert hex_example(page, "native") == read_table(native_of_the_example()).packed.hex()


def test_the_example_of_the_brief_head_is_pinned_in_the_core() -> None:
    pinned = (CORE / "frames" / "packed" / "tests.rs").read_text()
    assert f'"{hex_example("formats/packed-table.md", "brief")}"' in pinned


def test_the_states_of_a_torch_file_are_those_of_the_core() -> None:
    states = (DOCS / "formats" / "torch-file.md").read_text().partition("## States")[2]
    rows = re.findall(r"^\| `(\w+)` \|.*\| ?(\w*) ?\|$", states, re.MULTILINE)
    assert [state for state, _ in rows] == _core.TENSOR_STATES
    assert {state for state, action in rows if action == "moves"} == FIXABLE


def test_every_field_of_a_manifest_is_described() -> None:
    page = (DOCS / "formats" / "manifest.md").read_text().partition("## Lines")[2]
    described = {
        name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"\w+", row)
    }
    assert set(manifest._TYPES) | {"forgotten", "pinned"} == described


def test_the_columns_of_the_row_are_those_of_the_core() -> None:
    page = (DOCS / "formats" / "index-row.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| (yes|no) \|", page, re.MULTILINE)
    assert [(name, kind, kept == "yes") for name, kind, kept in rows] == _core.ROW_COLUMNS


def test_the_example_of_a_row_is_what_the_core_writes() -> None:
    table = read_table(fragments_of_the_example(), verify="all")
    rows, _ = _core.encode_rows("demo", [TableResult("/archive/a.dcm", table, None)])
    assert rows.hex().startswith(hex_example("formats/index-row.md", "row"))
