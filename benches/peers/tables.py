"""Rows of figures as Markdown, as JSON to compare with, and as a plot."""

from dataclasses import dataclass
from html import escape

from measure import Sample, median


@dataclass
class Row:
    """What was done, by what, and what it took for how many bytes."""

    key: list[str]
    sample: Sample
    size: int

    @property
    def speed(self) -> float:
        """GB (10^9 bytes) a second."""
        return self.size / 1e9 / self.sample.wall


@dataclass
class Table:
    """A table: the last of `heads` says who did it, and the rows that agree in the others are compared."""

    name: str
    heads: list[str]
    rows: list[Row]

    def markdown(self) -> str:
        heads = [*self.heads, "s", "s cpu", "peak MiB", "GB/s"]
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(self.heads) + "---:|" * 4]
        for row in self.rows:
            figures = [f"{row.sample.wall:.2f}", f"{row.sample.cpu:.2f}", f"{row.sample.peak:.0f}", f"{row.speed:.2f}"]
            lines.append("| " + " | ".join([*row.key, *figures]) + " |")
        return "\n".join(lines)

    def ratios(self) -> dict[str, float]:
        """The wall time of the fastest other program over kiln's, for everything that was done."""
        groups: dict[str, dict[str, float]] = {}
        for row in self.rows:
            groups.setdefault(" ".join(row.key[:-1]), {})[row.key[-1]] = row.sample.wall
        return {
            what: round(min(wall for tool, wall in walls.items() if tool != "kiln") / walls["kiln"], 2)
            for what, walls in groups.items()
            if "kiln" in walls and len(walls) > 1
        }


def merged(rows: list[Row]) -> list[Row]:
    """One row for each key, with the median of its samples."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.key), []).append(row)
    return [Row(list(key), median([row.sample for row in same]), same[0].size) for key, same in groups.items()]


def plot(table: Table) -> str:
    """A bar for each row, as long as it took, in groups of what was done: SVG, one colour for kiln and one for the others."""
    groups: dict[str, list[Row]] = {}
    for row in table.rows:
        groups.setdefault(", ".join(row.key[:-1]), []).append(row)
    lines, y = [], 0
    for what, rows in groups.items():
        y += 22
        lines.append(f'<text x="0" y="{y - 6}" font-weight="bold">{escape(what)}</text>')
        longest = max(row.sample.wall for row in rows)
        for row in rows:
            width = max(1, round(360 * row.sample.wall / longest))
            colour = "#c2410c" if row.key[-1] == "kiln" else "#94a3b8"
            lines.append(f'<text x="130" y="{y + 12}" text-anchor="end">{escape(row.key[-1])}</text>')
            lines.append(f'<rect x="138" y="{y + 1}" width="{width}" height="14" fill="{colour}"/>')
            lines.append(f'<text x="{144 + width}" y="{y + 12}">{row.sample.wall:.2f} s</text>')
            y += 18
    style = "font-family: sans-serif; font-size: 12px; fill: #334155"
    body = "\n".join(lines)
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="580" height="{y + 8}" style="{style}">\n{body}\n</svg>\n'
