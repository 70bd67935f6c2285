"""The survival matrix as a poster: A3, across, to be read from two metres. Lengths are millimetres."""

import tomllib
from html import escape

WIDTH, HEIGHT = 420, 297
EDGE, TOP, BOTTOM = 10, 54, 23  # around the matrix: at the sides, above, below
LABEL = 54  # how wide the names of the rows are
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif"
INK, FAINT = "#0f172a", "#475569"

# A verdict is told by a shape and in words: printed in black it says the same. Shapes are drawn, 10 by 10, because not
# every font has them. The colours: of the shape, and of the cell.
MARKS = {
    "yes": ("#15803d", "#dcfce7", '<path d="M1 5.5 4 9 9.5 1.5" fill="none" stroke-width="2"/>'),
    "no": ("#b91c1c", "#fee2e2", '<path d="M1.5 1.5 8.5 8.5M8.5 1.5 1.5 8.5" fill="none" stroke-width="2"/>'),
    "partly": (
        "#b45309",
        "#fef3c7",
        '<circle cx="5" cy="5" r="4" fill="none" stroke-width="1.4"/><path d="M5 1a4 4 0 0 0 0 8z" stroke="none"/>',
    ),
}


def draw(data: str, version: str) -> str:
    """The poster as SVG.

    Args:
        data: what survival.toml holds.
        version: of the Kubernetes that it was tried on.
    """
    matrix = tomllib.loads(data)
    rows, columns, filled = matrix["rows"], matrix["columns"], matrix.get("cells", {})
    wide = (WIDTH - 2 * EDGE - LABEL) / len(columns)
    high = (HEIGHT - TOP - BOTTOM) / len(rows)
    lefts = {column: EDGE + LABEL + place * wide for place, column in enumerate(columns)}
    shapes = [
        _text(EDGE, 21, "What outlives what", 17, "bold"),
        _text(WIDTH - EDGE, 14, "Kubernetes & State", 8, "bold", anchor="end"),
        _text(WIDTH - EDGE, 24, f"each cell tried on Kubernetes {version}", 7, anchor="end"),
        _text(EDGE, TOP - 5, "outlives …", 8.5),
    ]
    for column, x in lefts.items():
        shapes += _words(x + 1, TOP - 5, column, 6.5)
    told = []
    for place, name in enumerate(rows):
        y = TOP + place * high
        shapes += _words(EDGE, y + high - (4 if " " in name else 7.5), name, 8)
        for column, x in lefts.items():
            known = filled.get(name, {}).get(column)
            shapes.append(_cell(x, y, wide, high, known))
            told += [f"{name} × {column}: {known['verdict']}"] if known else []
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}mm" height="{HEIGHT}mm"'
        f' role="img" font-family="{FONT}" style="font-variant-ligatures: none" fill="{INK}">\n'
        "<title>The survival matrix: which place for state outlives which event</title>\n"
        f"<desc>{escape('; '.join(told))}</desc>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n' + "\n".join(shapes + _legend()) + "\n</svg>\n"
    )


def _cell(x: float, y: float, wide: float, high: float, known: dict | None) -> str:
    """A verdict with its mark, and the number of the lesson that shows it; a question mark where none does."""
    if not known:
        return _box(x, y, wide, high, "#cbd5e1", "#ffffff") + _text(
            x + wide / 2, y + high / 2 + 3, "?", 8, anchor="middle", colour=FAINT
        )
    verdict = known["verdict"]
    first, _, rest = verdict.partition(" ")
    line = y + (8.8 if rest else high / 2 + 3)
    colour, tint, _ = MARKS.get(verdict, MARKS["partly"])
    return (
        _box(x, y, wide, high, colour, tint)
        + _mark(x + 2.5, line - 7, verdict)
        + _text(x + 12, line, first, 8.5, "bold")
        + (_text(x + 3, y + high - 3.2, rest, 7.4) if rest else "")
        + f'<circle cx="{x + wide - 5.6:.1f}" cy="{y + 5.6:.1f}" r="4.4" fill="#ffffff" stroke="{FAINT}" '
        'stroke-width=".4"/>' + _text(x + wide - 5.6, y + 7.8, str(known["lesson"]), 6, anchor="middle")
    )


def _legend() -> list[str]:
    """What the marks and the numbers mean."""
    line = HEIGHT - 8
    shapes, x = [], EDGE
    for kind, meaning, wide in [
        ("yes", "outlives it", 62),
        ("no", "is gone", 52),
        ("partly", "it depends: read on", 92),
    ]:
        shapes += [_mark(x, line - 7, kind), _text(x + 11, line, meaning, 7.5)]
        x += wide
    shapes.append(_text(WIDTH - EDGE, line, "number: the lesson that shows it · ? no lesson shows it", 7, anchor="end"))
    return shapes


def _box(x: float, y: float, wide: float, high: float, line: str, tint: str) -> str:
    """The frame of a cell."""
    return (
        f'<rect x="{x + 0.7:.1f}" y="{y + 0.7:.1f}" width="{wide - 1.4:.1f}" height="{high - 1.4:.1f}" rx="2" '
        f'fill="{tint}" stroke="{line}" stroke-width=".5"/>'
    )


def _mark(x: float, y: float, verdict: str) -> str:
    """The shape that stands for a verdict, 8 high."""
    colour, _, shape = MARKS.get(verdict, MARKS["partly"])
    return f'<g transform="translate({x:.1f} {y:.1f}) scale(.8)" stroke="{colour}" fill="{colour}">{shape}</g>'


def _words(x: float, y: float, name: str, size: float) -> list[str]:
    """A name, its last word on the line at y, one before it on the line above."""
    lines = name.split()
    return [_text(x, y - (len(lines) - 1 - n) * size * 1.05, word, size, "bold") for n, word in enumerate(lines)]


def _text(x: float, y: float, words: str, size: float, weight="normal", anchor="start", colour=INK) -> str:
    """A piece of writing at a place."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(words)}</text>'
    )
