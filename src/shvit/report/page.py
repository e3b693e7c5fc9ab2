"""Render a report as one HTML file that needs no other file and no network."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, select_autoescape

from ..figures import literal_text
from ..files import replacing
from ..provenance import hardware_in_words
from .blocks import Picture, Plot, Section


@dataclass(frozen=True)
class Page:
    """The contents of an HTML report."""

    title: str
    lead: str
    """One or two sentences below the title."""
    findings: tuple[str, ...]
    """Sentences that state the main results."""
    sections: tuple[Section, ...]
    about: Mapping[str, Any]
    """Where the numbers were measured: `provenance.facts()`, and optionally `threads`."""
    footer: str = ""


@literal_text()
def png(plot: Plot) -> bytes:
    """The figure as a PNG file."""
    buffer = BytesIO()
    plot.figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def render(page: Page) -> str:
    """The page as HTML."""
    plots = {plot.name: png(plot) for section in page.sections for plot in section.pictures}
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        page=page,
        images={name: base64.b64encode(content).decode() for name, content in plots.items()},
        embedded=_embedded,
        hardware=hardware_in_words(page.about["hardware"]),
        about=page.about,
    )


def save_page(page: Page, path: Path) -> None:
    """Write the page as one HTML file. Raises Failure if no space is left."""
    with replacing(path) as temporary:
        temporary.write_bytes(render(page).encode(errors="backslashreplace"))


def _embedded(picture: Picture) -> str:
    return f"data:{picture.mime};base64,{base64.b64encode(picture.image).decode()}"


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>
  :root { --ink: #1d2733; --soft: #5d6b7a; --line: #dfe4ea; --accent: #c2255c; --wash: #f7f8fa }
  body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); margin: 0 auto;
         max-width: 72rem; padding: 2.5rem 1.25rem 4rem }
  h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere }
  h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; padding-top: 1.2rem; border-top: 1px solid var(--line) }
  .lead { font-size: 1.08rem; color: var(--soft); max-width: 46rem }
  .findings { background: var(--wash); border-left: 4px solid var(--accent); padding: .8rem 1.2rem; margin: 1.4rem 0 }
  .findings h2 { border: 0; margin: 0 0 .3rem; padding: 0; font-size: 1rem }
  .findings ul { margin: 0; padding-left: 1.1rem }
  p { max-width: 46rem; margin: .5rem 0 }
  figure { margin: 1.2rem 0 } img { max-width: 100%; height: auto; display: block }
  figcaption, .note, footer { color: var(--soft); font-size: .875rem; max-width: 46rem }
  .scroll { overflow-x: auto; margin: 1rem 0 .3rem }
  table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
  caption { text-align: left; font-weight: 600; padding-bottom: .35rem; white-space: nowrap }
  th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
  th { font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); vertical-align: bottom;
       max-width: 7rem }
  th:first-child, td:first-child { text-align: left; padding-left: 0; max-width: none; white-space: nowrap }
  .gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem }
  .gallery figure { margin: 0 } .gallery figcaption { white-space: pre-line }
  details > summary { cursor: pointer; color: var(--soft); margin: .8rem 0 }
  code { font-size: .85em; overflow-wrap: anywhere }
</style>
<h1>{{ page.title }}</h1>
<p class="lead">{{ page.lead }}</p>
<div class="findings"><h2>Findings</h2><ul>
{% for finding in page.findings %}
  <li>{{ finding }}</li>
{% endfor %}
</ul></div>
{% for section in page.sections %}
<h2>{{ section.title }}</h2>
{% for text in section.text %}
<p>{{ text }}</p>
{% endfor %}
{% for picture in section.pictures %}
<figure><img alt="{{ picture.caption }}" src="data:image/png;base64,{{ images[picture.name] }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
{% for gallery in section.galleries %}
<h3>{{ gallery.title }}</h3>
<div class="gallery">
{% for picture in gallery.pictures %}
<figure><img alt="{{ picture.caption }}" src="{{ embedded(picture) }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
</div>
{% if gallery.note %}<p class="note">{{ gallery.note }}</p>{% endif %}
{% endfor %}
{% for table in section.tables %}
{% if table.rows|length > 24 %}<details><summary>{{ table.title }}: {{ table.rows|length }} rows</summary>{% endif %}
<div class="scroll"><table><caption>{{ table.title }}</caption>
<thead><tr>{% for each in table.columns %}<th>{{ each.name|replace(" %", "\u00a0%") }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.shown %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if table.note %}<p class="note">{{ table.note }}</p>{% endif %}
{% if table.rows|length > 24 %}</details>{% endif %}
{% endfor %}
{% endfor %}
<h2>How it was measured</h2>
<p>{{ hardware }}, {{ about.hardware.cores }} cores{% if about.threads %}, threads: {{ about.threads }}{% endif %}.
{{ about.date }}, commit {{ about.commit or "unknown" }}.</p>
<p><code>{{ about.command }}</code></p>
<p class="note">{% for item in about.versions.items() %}{{ ", " if loop.index > 1 }}{{ item|join(" ") }}{% endfor %}</p>
{% if page.footer %}
<footer><p>{{ page.footer }}</p></footer>
{% endif %}
</html>
"""
