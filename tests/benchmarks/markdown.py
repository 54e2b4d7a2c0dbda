"""Markdown: sections, tables and a chart."""


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def section(title, *parts):
    return "\n\n".join([f"## {title}", *(part for part in parts if part)])


def replaced(document, section):
    """A document with one section in the place of the one of the same title."""
    title = section.partition("\n")[0]
    before, found, rest = document.partition(f"{title}\n")
    if not found:
        raise ValueError(f"the document has no section {title!r}")
    _, next_section, after = rest.partition("\n## ")
    return f"{before}{section}\n{next_section}{after}"


def chart(title, x_title, xs, y_title, ys):
    """A mermaid line chart."""
    return "\n".join(
        [
            "```mermaid",
            "xychart-beta",
            f'    title "{title}"',
            f'    x-axis "{x_title}" [{", ".join(str(x) for x in xs)}]',
            f'    y-axis "{y_title}" 0 --> {1.1 * max(ys):.3g}',
            f"    line [{', '.join(f'{y:.3g}' for y in ys)}]",
            "```",
        ]
    )
