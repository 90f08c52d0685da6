"""One page for all races: self-contained HTML, charts as inline SVG, no script, nothing fetched."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

WIDTH, ROW, LEFT, RIGHT = 940, 26, 270, 190
QUICK = "A quick run with small sizes: for the look of it, not for quoting."
STYLE = """
:root { --ink:#17212b; --dim:#5d6b78; --paper:#fbfaf7; --card:#fff; --rule:#e4e0d8; --ours:#0b7a75;
        --rival:#9aa5b1; --floor:#c98a2b; --bad:#b3402e; --good:#2c7a3f; }
@media (prefers-color-scheme: dark) { :root { --ink:#e8e6e1; --dim:#98a4b0; --paper:#14181c; --card:#1b2127;
        --rule:#2c343c; --ours:#3fc1b4; --rival:#6d7985; --floor:#e0a94a; --bad:#e2705b; --good:#6fbf7f; } }
* { box-sizing:border-box } body { margin:0; background:var(--paper); color:var(--ink);
        font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif }
main { max-width:1040px; margin:0 auto; padding:48px 24px 80px }
h1 { font-size:34px; margin:0 0 4px; letter-spacing:-.02em } h2 { font-size:22px; margin:52px 0 8px }
h3 { font-size:17px; margin:0 } p { margin:4px 0 12px; color:var(--dim); max-width:75ch }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:14px; margin:28px 0 }
.card { background:var(--card); border:1px solid var(--rule); border-radius:10px; padding:16px 18px }
.card b { display:block; font-size:32px; line-height:1.1; color:var(--ours); letter-spacing:-.02em }
.card span { color:var(--dim); font-size:13px }
section { background:var(--card); border:1px solid var(--rule); border-radius:10px; padding:20px 22px;
        margin:16px 0 }
svg { width:100%; height:auto; display:block }
svg text { fill:var(--ink); font-size:13px; stroke:none }
svg .dim { fill:var(--dim); font-size:11.5px } svg .rule { stroke:var(--rule) }
line { stroke-width:1 } line.voxtier, line.rival, line.floor { stroke-width:2 }
.voxtier { fill:var(--ours); stroke:var(--ours) } .rival { fill:var(--rival); stroke:var(--rival) }
.floor { fill:var(--card); stroke:var(--floor) }
svg .name-voxtier { font-weight:600 } svg .bad { fill:var(--bad) }
ul { list-style:none; margin:12px 0 0; padding:0; display:flex; flex-wrap:wrap; gap:8px }
li { border:1px solid var(--rule); border-radius:999px; padding:2px 12px; font-size:13px; color:var(--dim) }
li.met::before { content:"met "; color:var(--good); font-weight:600 }
li.missed::before { content:"missed "; color:var(--bad); font-weight:600 }
.key i { display:inline-block; width:10px; height:10px; border-radius:50%; margin:0 6px 0 14px;
        border:2px solid }
dl { display:grid; grid-template-columns:max-content 1fr; gap:2px 16px; color:var(--dim); font-size:13px }
dt { font-weight:600 } dd { margin:0 }
"""


def write_report(results: Path, journeys: list[str]) -> Path:
    """Draw every journey whose JSON is in ``results``; return the path of the page."""
    contents = [
        json.loads(path.read_text()) for name in journeys if (path := results / f"{name}.json").exists()
    ]
    races = [race for content in contents for race in content["races"]]
    machine = contents[-1]["machine"] if contents else {}
    sections = [f"<h2>{title_of(name)}</h2>" + "".join(map(section, group)) for name, group in grouped(races)]
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>voxtier: benchmarks</title><style>{STYLE}</style>
<main><h1>voxtier, measured</h1>
<p>Every race runs all ways in turns and counts the best lap. All answers are compared; a rival that answers
otherwise has no time. Scales are logarithmic: each line is ten times the one before.</p>
<p class="key"><i class="voxtier" style="background:var(--ours)"></i>voxtier
<i class="rival" style="background:var(--rival)"></i>rival
<i class="floor" style="background:var(--card);border-color:var(--floor)"></i>floor: what any reader must do,
and nothing else</p>
<div class="cards">{"".join(card(race) for race in races if headline(race))}</div>
{"".join(sections)}
<h2>Where</h2><dl>{"".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in machine.items())}</dl>
<p>{QUICK if any(content["quick"] for content in contents) else ""}</p>
</main></html>
"""
    report = results / "report.html"
    report.write_text(page)
    return report


def title_of(journey: str) -> str:
    return journey.replace("_", " ").capitalize()


def grouped(races: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the races by journey, in their order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for race in races:
        groups.setdefault(race["journey"], []).append(race)
    return list(groups.items())


def headline(race: dict[str, Any]) -> tuple[float, str] | None:
    """Return how many times faster than pydicom or RadiObject, where both have a time."""
    ours = next((way for way in race["ways"] if way["role"] == "voxtier" and way["best"]), None)
    known = [
        way for way in race["ways"] if way["name"].startswith(("pydicom ", "RadiObject ")) and way["best"]
    ]
    if not ours or not known or race.get("quantity", "seconds") != "seconds":
        return None
    return known[0]["best"] / ours["best"], known[0]["name"]


def card(race: dict[str, Any]) -> str:
    ratio, rival = headline(race) or (0.0, "")
    number = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
    words = f"{html.escape(rival)}<br>{html.escape(race['title'])}"
    return f'<div class="card"><b>{number}×</b><span>{words}</span></div>'


def section(race: dict[str, Any]) -> str:
    goals = "".join(
        f'<li class="{"met" if goal["met"] else "missed"}">{html.escape(goal["text"])}: {goal["shown"]}</li>'
        for goal in race["goals"]
    )
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in race["facts"])
    return (
        f"<section><h3>{html.escape(race['title'])}</h3><p>{html.escape(race['story'])}</p>"
        f"{chart(race)}<ul>{goals}{facts}</ul></section>"
    )


def chart(race: dict[str, Any]) -> str:
    """Draw one line per way: a dot at the best lap, a thin bar to the median, and the number."""
    times = [way[key] for way in race["ways"] for key in ("best", "median") if way["best"]]
    if not times:  # facts without a race, or a race that nobody finished
        return "".join(
            f"<p>{html.escape(way['name'] + ': ' + (way['trouble'] or ''))}</p>" for way in race["ways"]
        )
    low = math.floor(math.log10(min(times)))
    high = max(math.ceil(math.log10(max(times)) + 0.02), low + 1)
    height = ROW * len(race["ways"]) + 30
    ours = next((way["best"] for way in race["ways"] if way["role"] == "voxtier" and way["best"]), None)

    def place(seconds: float) -> float:
        return LEFT + (math.log10(seconds) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(race["title"])}">']
    for decade in range(low, high + 1):
        x = place(10.0**decade)
        parts += [
            line("rule", x, x, 4, height - 22),
            text("dim", x, height - 6, shown(10.0**decade, race), "middle"),
        ]
    for index, way in enumerate(race["ways"]):
        y = 4 + ROW * index + ROW / 2
        hint = html.escape(": ".join(filter(None, [way["name"], way["note"]])))
        parts += [
            f"<g><title>{hint}</title>",
            text(f"name-{way['role']}", LEFT - 14, y + 4.5, way["name"], "end"),
        ]
        if way["best"] is None:
            parts += [text("dim bad", LEFT + 8, y + 4.5, way["trouble"] or ""), "</g>"]
            continue
        best, median = place(way["best"]), place(way["median"])
        parts += [
            line("rule", LEFT, best, y, y),
            line(way["role"], best, median, y, y),
            f'<circle class="{way["role"]}" cx="{best:.1f}" cy="{y}" r="5.5" stroke-width="2"/>',
            text("time", WIDTH - RIGHT + 26, y + 4.5, shown(way["best"], race)),
            text("dim", WIDTH - 4, y + 4.5, f"{way['best'] / ours:,.2f}×" if ours else "", "end"),
            "</g>",
        ]
    return "".join(parts) + "</svg>"


def line(name: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1}" y2="{y2}"/>'


def text(name: str, x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{html.escape(words)}</text>'


def shown(amount: float, race: dict[str, Any]) -> str:
    """Return a time, or another quantity that the race counts, with its unit."""
    quantity = race.get("quantity", "seconds")
    if quantity == "bytes":
        return next(f"{amount / size:.3g} {unit}" for size, unit in BYTES if amount >= size or size == 1)
    if quantity == "seconds":
        return duration(amount)
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


def duration(seconds: float) -> str:
    """Return a duration with three digits and a unit."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 0.9999:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
