"""What the pages of reports have in common: the document, and its style: light and dark, wide and narrow, screen and paper."""

import html
from collections.abc import Iterable

from jaxeff.lab.plots import COLOURS, ON_DARK, variables

LIGHT = f"""color-scheme: light; --page: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --wash: #f6f8fa; --link: #0550ae;
  --mark: #0072B2; {variables(COLOURS)}"""
DARK = f"""color-scheme: dark; --page: #14171b; --ink: #e8eaed; --soft: #a3acb6; --line: #3a424b; --wash: #1e2329; --link: #7cb7ff;
  --mark: #5AB0EE; {variables(ON_DARK)}"""

SCREEN = """
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--page);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .7rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p, ul, ol, dl { max-width: 48rem; }
a { color: var(--link); }
.lead { color: var(--soft); margin: 0; font-size: 1.06rem; }
.date { color: var(--soft); margin: .2rem 0 0; font-size: .9rem; }
.finding { background: var(--wash); border-left: 4px solid var(--mark); padding: .8rem 1.1rem; margin: 1.4rem 0; max-width: 54rem; }
.finding p { margin: .3rem 0; max-width: none; }
.scroll { overflow-x: auto; margin: .4rem 0 1.6rem; }
.scroll:focus-visible { outline: 3px solid var(--mark); }
table { border-collapse: separate; border-spacing: 0; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 0 0 .6rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: min(54rem, 100vw - 2rem); }
th, td { padding: .4rem .65rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; vertical-align: bottom; }
thead th { font-weight: 600; border-bottom: 2px solid var(--soft); white-space: normal; line-height: 1.3; min-width: 4.2rem; }
thead th small { display: block; font-weight: 400; color: var(--soft); }
th[scope=row], th.first { text-align: left; position: sticky; left: 0; background: var(--page); }
tbody tr:hover > * { background: var(--wash); }
td.best { font-weight: 700; }
th.code { text-align: left; }
td.code { text-align: left; white-space: normal; min-width: 18rem; overflow-wrap: anywhere;
  font: .88em/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.along { font-size: .92rem; color: var(--soft); }
figure { margin: 1.6rem 0 2.6rem; } figure > svg { max-width: 54rem; }
.panels { display: flex; flex-wrap: wrap; gap: .6rem 1.4rem; }
.panel { flex: 1 1 20rem; max-width: 30rem; min-width: 0; }
.panel svg { width: 100%; height: auto; display: block; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; padding: 0; margin: .5rem 0; max-width: none;
  font-size: .88rem; }
.legend li { display: flex; align-items: center; gap: .45rem; }
.legend svg { flex: none; }
figcaption { color: var(--soft); font-size: .92rem; max-width: 60rem; margin-top: .4rem; }
pre, code { font: .88em/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 3rem; color: var(--soft); font-size: .9rem; }
"""

NARROW = """
  main { padding: 1.2rem .8rem 2.5rem; } h1 { font-size: 1.55rem; }
  dl { display: block; } dd { margin-bottom: .5rem; } ul:not(.legend) { padding-left: 1.2rem; }
  th[scope=row], th.first { min-width: 6.4rem; max-width: 8.5rem; overflow-wrap: break-word; white-space: normal; padding-left: 0; }
  th, td { padding: .4rem .5rem; }
  figure:has(> svg) { overflow-x: auto; } figure > svg { min-width: 34rem; }
"""

PRINT = """
  @page { margin: 14mm; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; }
  h2 { margin-top: 1.6rem; break-after: avoid; }
  .scroll { overflow: visible; } table { font-size: 7.2pt; } th, td { padding: .25rem .3rem; } thead th { min-width: 0; }
  th[scope=row], th.first { position: static; } caption span { position: static; max-width: none; }
  figure, tr, li, .finding { break-inside: avoid; } figure { margin: .8rem 0 1.2rem; }
  .panels { gap: .4rem .8rem; } .panel { flex: 0 1 calc(50% - .4rem); } figcaption { font-size: 8.5pt; }
  td.code { min-width: 0; } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 7.5pt; overflow: visible; }
  details::details-content { content-visibility: visible; block-size: auto; } summary { list-style: none; font-weight: 600; }
  * { print-color-adjust: exact; }
"""

CSS = f"""
:root {{ {LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
{SCREEN}
@media screen and (max-width: 40rem) {{{NARROW}}}
@media print {{{PRINT}}}
"""


def document(title: str, body: Iterable[str], css: str = "") -> str:
    """A whole page. title: plain text. body: parts, as HTML. css: beside the common style."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )
