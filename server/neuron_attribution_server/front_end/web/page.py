"""What the web page is made of, and the headers that every answer carries."""

from __future__ import annotations

from dataclasses import dataclass

from neuron_attribution.report.page import LIBRARIES, MODULES, PLOT_STYLE, asset, script, source_hash, vendored

_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {source_hash(PLOT_STYLE)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "neuron-attribution",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page and its media type."""

    content: bytes
    kind: str


def page_files() -> dict[str, PageFile]:
    """The files by their paths."""
    libraries = {f"/{name}": text for name, text in zip(LIBRARIES, vendored(LIBRARIES), strict=True)}
    scripts = {**libraries, "/page.js": script((*MODULES, "question.js", "talk.js", "live.js"))}
    files = {path: PageFile(text.encode(), "text/javascript") for path, text in scripts.items()}
    files["/page.css"] = PageFile(asset("page.css").encode(), "text/css")
    files["/"] = PageFile(asset("live.html").encode(), "text/html")
    return files
