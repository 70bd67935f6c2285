"""Pictures of what a lesson has recorded, as SVG: for looking at, while the text beside them is what tests compare."""

from html import escape

from IPython.display import SVG

# A state is told by its shade and by its height, so that it can be seen without colours, too.
SHADES = {
    "starting": ("#9ec5fe", 8),
    "ready": ("#0d9488", 16),
    "terminating": ("#f59e0b", 8),
    "succeeded": ("#94a3b8", 3),
    "failed": ("#b91c1c", 3),
}
LEFT, WIDTH, ROW = 130, 560, 24  # pixels: the names, the time, a Pod


def timeline(steps: list[tuple], seconds: float) -> SVG:
    """Draw what became of Pods: a row for each, and time from left to right.

    Args:
        steps: (seconds since the beginning, name, state before or None, state), oldest first; "gone" ends a row.
        seconds: when the recording ended.
    """
    names = list(dict.fromkeys(name for _, name, _, _ in steps))
    bars, latest = [], {}
    for when, name, before, step in steps:
        bars.append((name, before, latest.get(name, (0, None))[0], when))
        latest[name] = when, step
    bars += [(name, step, when, seconds) for name, (when, step) in latest.items()]
    height = ROW * len(names) + 58
    shapes = [_text(8, ROW * row + 25, name) for row, name in enumerate(names)]
    for name, state, begin, end in bars:
        if state in SHADES:
            shade, thick = SHADES[state]
            x, width = LEFT + WIDTH * begin / seconds, max(WIDTH * (end - begin) / seconds, 1)
            y = ROW * names.index(name) + 20 - thick / 2
            shapes.append(f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{thick}" fill="{shade}"/>')
    bottom = ROW * len(names) + 8
    shapes.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{bottom}" y2="{bottom}" stroke="#64748b"/>')
    shapes += [_text(LEFT, bottom + 16, "0 s"), _text(LEFT + WIDTH, bottom + 16, f"{seconds:.0f} s", "end")]
    for place, state in enumerate(dict.fromkeys(state for _, state, _, _ in bars if state in SHADES)):
        shade, thick = SHADES[state]
        x, y = LEFT + 110 * place, bottom + 34
        shapes.append(f'<rect x="{x}" y="{y - 4 - thick / 2:g}" width="16" height="{thick}" fill="{shade}"/>')
        shapes.append(_text(x + 22, y, state))
    what = "; ".join(f"{name} {step}" for _, name, _, step in steps)
    return SVG(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 12} {height}" '
        f'width="{LEFT + WIDTH + 12}" height="{height}" role="img" font-family="sans-serif" font-size="13">'
        f"<title>{escape(what)}</title>"
        f'<rect width="100%" height="100%" rx="6" fill="#ffffff"/>{"".join(shapes)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    """A piece of writing at a place."""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="#0f172a">{escape(text)}</text>'
