# SPDX-License-Identifier: Apache-2.0
"""The story as one HTML page that needs no other file, no network and, to be read, no script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape

from lab import chart, palette
from lab.story import Act, Story

STYLE = """
:root { --ink: #1c2530; --quiet: #5c6873; --grid: #dde3ea; --ground: #fff; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8edf2; --quiet: #a3afba; --grid: #36404a; --ground: #151a20; --band: #1e252d; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p.quiet, footer { color: var(--quiet); }
figure { margin: 0; position: relative; } svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg text.tick { fill: var(--quiet); } svg text.name { font-size: 14px; font-weight: 700; }
.grid { stroke: var(--grid); } .full { stroke: var(--quiet); }
.mark { stroke: var(--ink); stroke-width: 1.1; } .cross { stroke: var(--quiet); }
.vm { fill: none; stroke-linejoin: round; } .lost { fill: LOST; fill-opacity: .26; }
.tip { position: absolute; pointer-events: none; background: var(--ground); color: var(--ink);
  border: 1px solid var(--grid); border-radius: 4px; padding: .3rem .5rem; font-size: 13px;
  box-shadow: 0 2px 8px #0003; white-space: nowrap; }
.tip i { display: inline-block; width: .7em; height: .7em; margin-right: .4em; }
table { border-collapse: collapse; margin: .5rem 0; } caption { text-align: left; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid); text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; padding-right: 1.6rem; }
thead th { vertical-align: bottom; max-width: 14rem; } thead th.number { text-align: right;
  padding-right: 1.6rem; }
ul { margin: .3rem 0; padding-left: 1.2rem; }
""".replace("LOST", palette.LOST)

SCRIPT = """
"use strict";
for (const figure of document.querySelectorAll("figure[data-act]")) {
  const act = ACTS[+figure.dataset.act], svg = figure.querySelector("svg");
  const cross = svg.querySelector(".cross"), tip = figure.querySelector(".tip");
  const [first, last] = SPAN, left = LEFT, right = WIDTH - RIGHT;
  let at = 0;
  const hide = () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); };
  const show = () => {
    at = Math.min(last, Math.max(first, at));
    const x = left + (at - first) / (last - first) * (right - left);
    cross.setAttribute("x1", x); cross.setAttribute("x2", x);
    cross.setAttribute("visibility", "visible");
    tip.replaceChildren(Object.assign(document.createElement("b"),
      {textContent: at.toFixed(1) + " s"}));
    for (const vm of act) {
      const rate = vm.rates[Math.floor((at - vm.start) / vm.bin)];
      const row = document.createElement("div"), key = document.createElement("i");
      key.style.background = vm.colour;
      const text = rate === undefined ? "–" : (100 * rate / vm.full).toFixed(0) + " %  (" +
        Math.round(rate).toLocaleString("en") + " " + vm.unit + ")";
      row.append(key, vm.name + "  " + text);
      tip.append(row);
    }
    tip.hidden = false;
    const scale = svg.clientWidth / WIDTH, room = svg.clientWidth - tip.offsetWidth - 4;
    tip.style.left = Math.max(0, Math.min(room, x * scale + 12)) + "px";
    tip.style.top = svg.clientHeight * 0.45 + "px";
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * WIDTH / box.width;
    if (x < left || x > right) return hide();
    at = first + (x - left) / (right - left) * (last - first);
    show();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: -0.1, ArrowRight: 0.1}[event.key];
    if (step === undefined) return;
    event.preventDefault();
    at += step;
    show();
  });
}
"""


def render(story: Story) -> str:
    """The whole page as HTML text."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(story.title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(story.title)}</h1>",
            f'<p class="quiet">{_pairs(story.setting)}</p>',
            *(_act(number, act, story) for number, act in enumerate(story.acts)),
            _table(story),
            f"<footer><p>{_pairs(story.versions)}<br>Told {escape(story.told_at)}. "
            f"{escape(story.explained)}</p></footer>",
            f"<script>{_data(story)}{SCRIPT}</script>",
            "</body></html>",
            "",
        ]
    )


def _act(number: int, act: Act, story: Story) -> str:
    decided = "".join(f"<li>{escape(line)}</li>" for line in act.decided)
    return (
        f"<section><h2>{escape(act.title)}</h2>"
        f'<figure data-act="{number}">{chart.svg(act, story)}'
        '<div class="tip" hidden></div></figure>'
        + (f"<p>What was decided, and why:</p><ul>{decided}</ul>" if decided else "")
        + "</section>"
    )


def _table(story: Story) -> str:
    heads = "".join(
        f'<th class="number" scope="col">{escape(act.title)}</th>' for act in story.acts
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f'<td class="number">{escape(f.text) if f else "–"}</td>' for f in figures)
        + "</tr>"
        for label, figures in story.rows()
    )
    return (
        "<section><h2>Figures</h2><table>"
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _pairs(named: Mapping[str, str]) -> str:
    return " · ".join(f"{escape(name)}: {escape(text)}" for name, text in named.items())


def _data(story: Story) -> str:
    acts = [
        [
            {
                "name": vm.name,
                "unit": vm.unit,
                "full": vm.full_rate,
                "start": round(vm.start, 4),
                "bin": vm.bin_s,
                "colour": colour,
                "rates": [round(rate, 1) for rate in vm.rates],
            }
            for vm, colour in zip(act.vms, palette.colours(act.vms), strict=True)
        ]
        for act in story.acts
    ]
    values = {
        "ACTS": acts,
        "SPAN": story.span,
        "WIDTH": chart.WIDTH,
        "LEFT": chart.LEFT,
        "RIGHT": chart.RIGHT,
    }
    # A name in the data must not be able to end the script element.
    return "".join(
        f"const {name}={json.dumps(value)};\n".replace("<", "\\u003c")
        for name, value in values.items()
    )
