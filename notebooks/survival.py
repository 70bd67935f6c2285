"""The survival matrix (survival.toml): what outlives what, as far as the lessons have shown it."""

import tomllib
from html import escape
from pathlib import Path

MARKS = {"yes": "✓", "no": "✗"}
TINTS = {"✓": "#16a34a40", "✗": "#dc262640", "◐": "#d9770640"}  # see-through, for light and for dark pages
UNKNOWN = "?"


class Matrix:
    """The cells that the lessons up to one have filled: a table in a notebook, lines of text elsewhere.

    Attributes:
        rows: places for state.
        columns: what happens to it.
        cells: {(row, column): {"verdict": "yes", "lesson": 3, "evidence": a heading of that lesson}}.
    """

    def __init__(self, lesson: int, data: str | None = None):
        data = tomllib.loads(data or Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
        self.rows, self.columns, self._lesson = data["rows"], data["columns"], lesson
        filled = {(row, column): cell for row, cells in data.get("cells", {}).items() for column, cell in cells.items()}
        self.cells = {place: cell for place, cell in filled.items() if cell["lesson"] <= lesson}

    def contradictions(self, seen: dict) -> list[str]:
        """What the lesson's own cells say and the cluster does not, and the other way round.

        Args:
            seen: {(row, column): True, False or a few words}; what is no cell of the matrix is passed over.
        """
        words = {True: "yes", False: "no"}
        seen = {place: words.get(answer, answer) for place, answer in seen.items()}
        found = []
        for row in self.rows:
            for column in self.columns:
                cell = self.cells.get((row, column), {})
                said = cell["verdict"] if cell.get("lesson") == self._lesson else "nothing"
                shown = seen.get((row, column), "nothing")
                if said != shown:
                    found.append(f"{row} × {column}: survival.toml says {said}, the cluster {shown}.")
        return found

    def _marked(self, row, column):
        """A cell in words, with a mark before them for whoever only glances at it."""
        if (row, column) not in self.cells:
            return UNKNOWN
        verdict = self.cells[row, column]["verdict"]
        return f"{MARKS.get(verdict, '◐')} {verdict}"

    def __repr__(self):
        """The matrix in lines of text, the same on every screen."""
        head = ["outlives …", *self.columns]
        lines = [head, *([row, *(self._marked(row, column) for column in self.columns)] for row in self.rows)]
        widths = [max(map(len, words)) for words in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, words, widths)).rstrip() for words in lines)

    def _repr_html_(self):
        style = "text-align: left; border: 1px solid #94a3b8"
        lines = [_head("col", ["outlives …", *self.columns], style)]
        for row in self.rows:
            lines.append(
                _head("row", [row], style) + "".join(self._cell(row, column, style) for column in self.columns)
            )
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        caption = f"The survival matrix after lesson {self._lesson} ({UNKNOWN} is not shown yet)"
        return f'<table><caption style="text-align: left">{caption}</caption>{body}</table>'

    def _cell(self, row, column, style):
        text, source = self._marked(row, column), ""
        if known := self.cells.get((row, column)):
            style += f"; background: {TINTS[text[0]]}"
            source = f'<br><small title="{escape(known["evidence"])}">lesson {known["lesson"]}</small>'
        return f'<td style="{style}">{escape(text)}{source}</td>'


def _head(scope, names, style):
    return "".join(f'<th scope="{scope}" style="{style}">{escape(name)}</th>' for name in names)
