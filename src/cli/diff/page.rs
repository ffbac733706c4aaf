//! A page that shows two models side by side, layer by layer: one file of HTML with its picture and its style in it, and
//! nothing that runs or is fetched.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{details, row};
use crate::cli::output::{count, one_line, size};
use crate::manifest::layer_name;
use crate::oci::{Descriptor, Digest, Reference};
use crate::ops::diff::{Change, Diffed, LayerChange};

/// A model with more layers has no names beside them.
const MOST_LABELS: usize = 400;
/// How many rows the table of differences has.
const MOST_ROWS: usize = 2000;
/// Where the two columns begin, how wide they are, and how wide all is, in pixels.
const COLUMNS: [f64; 2] = [400.0, 680.0];
const COLUMN: f64 = 120.0;
const WIDTH: f64 = 1200.0;

const STYLE: &str = "\
:root { color-scheme: light dark; --shared: #9aa5b1; --moved: #3b82f6; --changed: #f59e0b; --only-here: #ef4444; --only-there: #22c55e }
body { font: 14px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.3rem } code, svg text { font-family: ui-monospace, monospace }
dt { float: left; clear: left; width: 1.2rem; height: 1.2rem; margin: .1rem .6rem 0 0; border-radius: 3px }
dd { margin: 0 0 .3rem } svg { width: 100%; height: auto } svg text { font-size: 11px; fill: currentColor }
path { fill: none; stroke-width: 1.5; opacity: .45 } path.moved, path.changed { opacity: .9 }
table { border-collapse: collapse } th, td { text-align: left; padding: .15rem 1rem .15rem 0 } td:nth-child(3) { text-align: right }
details { margin: .5rem 0 } pre { overflow-x: auto }
";

/// The page for two models of these names.
pub(super) fn page(names: &[Reference; 2], diffed: &Diffed) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let [a, b] = names.each_ref().map(|name| escaped(&name.to_string()));
    let mut colours = String::new();
    for change in Change::ALL.map(Change::name) {
        line(&mut colours, format_args!(".{change} {{ fill: var(--{change}); background: var(--{change}) }}"));
        line(&mut colours, format_args!("path.{change} {{ stroke: var(--{change}); fill: none }}"));
    }
    line(&mut page, format_args!("<title>{a} and {b}</title>\n<style>\n{STYLE}{colours}</style>"));
    line(&mut page, format_args!("<h1>{a} and {b}</h1>\n<p>"));
    for (name, digest) in [a, b].iter().zip(diffed.digests) {
        line(&mut page, format_args!("<code>{name}</code> <code>{digest}</code><br>"));
    }
    line(&mut page, format_args!("Result: <strong>{}</strong></p>\n<dl>", super::result(diffed)));
    for change in Change::ALL {
        let (layers, bytes) = diffed.total(change);
        let name = change.name();
        line(
            &mut page,
            format_args!(
                "<dt class=\"{name}\"></dt><dd>{}: {} ({})</dd>",
                words(change),
                count(layers, "layer"),
                size(bytes)
            ),
        );
    }
    page.push_str("</dl>\n");
    picture(&mut page, diffed);
    differences(&mut page, diffed);
    page.push_str("</html>\n");
    page
}

fn words(change: Change) -> &'static str {
    match change {
        Change::Shared => "shared",
        Change::Moved => "moved: the same bytes elsewhere",
        Change::Changed => "changed: other bytes under the same name",
        Change::OnlyHere => "only in the first",
        Change::OnlyThere => "only in the second",
    }
}

/// Both columns of layers, and what leads from one to the other.
fn picture(page: &mut String, diffed: &Diffed) {
    let ours: Vec<(&Descriptor, Change)> =
        diffed.layers.iter().filter_map(|change| Some((change.ours.as_ref()?, change.change))).collect();
    let mut changes: BTreeMap<(String, Digest), Change> = BTreeMap::new();
    for LayerChange { change, theirs, .. } in &diffed.layers {
        if let Some(layer) = theirs {
            changes.insert((layer_name(layer), layer.digest), *change);
        }
    }
    let of = |layer: &Descriptor| changes.get(&(layer_name(layer), layer.digest)).copied().unwrap_or(Change::OnlyThere);
    let theirs: Vec<(&Descriptor, Change)> = diffed.theirs.iter().map(|layer| (layer, of(layer))).collect();
    let columns = [ours, theirs].map(|layers| Column::of(layers, diffed));
    let height = columns.iter().map(|column| column.height).fold(0.0, f64::max);
    line(
        page,
        format_args!("<svg viewBox=\"0 0 {WIDTH} {height:.1}\" role=\"img\" aria-label=\"The layers of both models\">"),
    );
    let [here, there] = &columns;
    for change in &diffed.layers {
        let (Some(one), Some(other)) = (&change.ours, &change.theirs) else { continue };
        if let (Some(from), Some(to)) = (here.middle_of(one), there.middle_of(other)) {
            let [left, right] = [COLUMNS[0] + COLUMN, COLUMNS[1]];
            let bend = f64::midpoint(left, right);
            let class = change.change.name();
            line(
                page,
                format_args!(
                    "<path class=\"{class}\" d=\"M{left} {from:.1}C{bend} {from:.1} {bend} {to:.1} {right} {to:.1}\"/>"
                ),
            );
        }
    }
    for ((column, left), (label, anchor)) in
        columns.iter().zip(COLUMNS).zip([(COLUMNS[0] - 8.0, "end"), (COLUMNS[1] + COLUMN + 8.0, "start")])
    {
        column.draw(page, left, label, anchor);
    }
    page.push_str("</svg>\n");
}

/// The layers of a model, one below the other.
struct Column<'a> {
    /// Each with its top and its height in pixels.
    blocks: Vec<(&'a Descriptor, Change, f64, f64)>,
    middles: BTreeMap<(String, Digest), f64>,
    height: f64,
}

impl<'a> Column<'a> {
    /// A layer is the taller the more bytes it has, by the root: the smallest are still to be seen.
    fn of(layers: Vec<(&'a Descriptor, Change)>, diffed: &Diffed) -> Self {
        let unit = if diffed.layers.len() > MOST_LABELS { 4.0 } else { 14.0 };
        let all = diffed.layers.iter().flat_map(|change| [&change.ours, &change.theirs]).flatten();
        let largest = all.map(|layer| layer.size).max().unwrap_or(1).max(1) as f64;
        let (mut blocks, mut middles, mut top) = (Vec::new(), BTreeMap::new(), 0.0);
        for (layer, change) in layers {
            let height = unit * (1.0 + 2.0 * (layer.size as f64 / largest).sqrt());
            blocks.push((layer, change, top, height));
            middles.insert((layer_name(layer), layer.digest), top + height / 2.0);
            top += height + 1.0;
        }
        Self { blocks, middles, height: top }
    }

    fn middle_of(&self, layer: &Descriptor) -> Option<f64> {
        self.middles.get(&(layer_name(layer), layer.digest)).copied()
    }

    fn draw(&self, page: &mut String, left: f64, label: f64, anchor: &str) {
        for (layer, change, top, height) in &self.blocks {
            let (name, class) = (escaped(&one_line(&layer_name(layer))), change.name());
            line(
                page,
                format_args!(
                    "<rect class=\"{class}\" x=\"{left}\" y=\"{top:.1}\" width=\"{COLUMN}\" height=\"{height:.1}\"><title>{name} \
                     {} {}</title></rect>",
                    size(layer.size),
                    layer.digest
                ),
            );
            if self.blocks.len() <= MOST_LABELS {
                let middle = top + height / 2.0 + 4.0;
                line(
                    page,
                    format_args!("<text x=\"{label}\" y=\"{middle:.1}\" text-anchor=\"{anchor}\">{name}</text>"),
                );
            }
        }
    }
}

/// The table of what is not shared, and what was found.
fn differences(page: &mut String, diffed: &Diffed) {
    let differing: Vec<&LayerChange> = diffed.layers.iter().filter(|layer| layer.change != Change::Shared).collect();
    if !differing.is_empty() {
        page.push_str("<h2>Layers that differ</h2>\n<table>\n<tr><th>change<th>layer<th>bytes<th>there\n");
        for cells in differing.iter().take(MOST_ROWS).filter_map(|change| row(change)) {
            let cells = cells.iter().map(|cell| format!("<td>{}", escaped(&one_line(cell))));
            line(page, format_args!("<tr>{}", cells.collect::<String>()));
        }
        page.push_str("</table>\n");
        if let Some(more) = differing.len().checked_sub(MOST_ROWS).filter(|more| *more > 0) {
            line(page, format_args!("<p>and {} more</p>", count(more as u64, "layer")));
        }
    }
    if !diffed.findings.is_empty() {
        page.push_str("<h2>What differs</h2>\n");
    }
    for found in &diffed.findings {
        line(page, format_args!("<details><summary>{}</summary><pre>", escaped(&one_line(&found.message))));
        details(found).for_each(|detail| line(page, format_args!("{}", escaped(&detail))));
        page.push_str("</pre></details>\n");
    }
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(page, "{text}");
}

/// `text` where HTML expects text or the value of an attribute in double quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}
