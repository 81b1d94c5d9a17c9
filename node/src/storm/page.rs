//! The report as one page that needs nothing else: styles and drawings are in it, nothing is fetched, nothing runs.
//!
//! Invariant: whatever is shown as text is escaped; the page has no script.
//!
//! Not here: the figures (`report`), the drawings (`chart`).

use std::fmt::Write;

use super::chart::{self, Chart};
use super::measure::{SLOT_MS, Slot};
use super::report::{Detail, Report};
use super::watch::milliseconds;

const STYLE: &str = include_str!("page.css");
/// Columns of a drawing over time.
const COLUMNS: usize = 80;

/// The page.
pub fn page(report: &Report, detail: &Detail) -> String {
    let title = match &report.options.scenario {
        Some(name) => format!("handfast storm: {}", escaped(name)),
        None => "handfast storm".to_owned(),
    };
    let charts = [
        card("Latency by percentile", &latency(detail)),
        card("Handshakes a second", &rate(detail)),
        card("Changes waiting for the disk", &over_beats(detail, "no answers", |beat| beat.waiting as f64, count)),
        card(
            "Control API: how late it answered",
            &over_beats(detail, "not watched", |beat| beat.lag_us as f64 / 1e3, ms),
        ),
        card(
            "Connections before TLS has proven a key",
            &over_beats(detail, "not watched", |beat| beat.half_open as f64, count),
        ),
        card("Memory of the node", &over_beats(detail, "not watched", |beat| beat.memory as f64 / MIB, mib)),
        card("Outcomes", &outcomes(report)),
        card("What failed", &faults(detail)),
        card("Options", &options(report)),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{}{}<div class=\"charts\">\n{}</div>\n\
         <footer class=\"soft\">handfast {}</footer>\n</main>\n</body>\n</html>\n",
        head(report, detail),
        tiles(report),
        charts.concat(),
        env!("CARGO_PKG_VERSION"),
    )
}

/// Text that stays text in HTML.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn head(report: &Report, detail: &Detail) -> String {
    let options = &report.options;
    let shape = match (options.rate, options.concurrency) {
        (Some(rate), _) => format!("open loop, {rate} arrivals a second"),
        (None, workers) => format!("closed loop, {} at once", workers.unwrap_or_default()),
    };
    let (class, verdict) = if report.is_good() {
        ("badge", "Everything that was promised was kept".to_owned())
    } else {
        let found = [
            (report.lost, "lost"),
            (report.wrong, "wrong"),
            (report.leaked_slots, "leaked slots"),
            (report.stuck, "stuck"),
            (report.unanswered, "unanswered"),
        ];
        let broken: Vec<String> =
            found.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let verdict = if broken.is_empty() { "Nothing was completed".to_owned() } else { broken.join(", ") };
        ("badge bad", verdict)
    };
    let starts = if detail.starts > 1 {
        format!(" The node was killed and started {} times.", detail.starts - 1)
    } else {
        String::new()
    };
    format!(
        "<p class=\"soft\">{}, {shape}, {:.1} s, seed {}</p>\n<p class=\"{class}\">{}</p>\n\
         <p class=\"soft\" style=\"margin:-6px 0 16px\">{} acknowledged statements found {}.{starts}</p>\n",
        escaped(&options.mix),
        detail.seconds,
        report.seed,
        escaped(&verdict),
        report.durable,
        escaped(&detail.checked),
    )
}

fn tiles(report: &Report) -> String {
    let mut tiles = vec![
        (report.completed.to_string(), "handshakes", false),
        (format!("{:.0}/s", report.rate_per_s), "rate", false),
        (report.failed.to_string(), "failed", report.failed > 0),
    ];
    if let Some(latency) = &report.latency_us {
        let figures = [(latency.p50, "p50 latency"), (latency.p99, "p99 latency"), (latency.max, "slowest")];
        tiles.extend(figures.map(|(us, name)| (milliseconds(us), name, false)));
    }
    if let Some(cpu) = report.cpu_us_per_handshake {
        tiles.push((format!("{cpu:.0} us"), "processor, both ends", false));
    }
    if let Some(lag) = &report.heartbeat_lag_us {
        tiles.push((milliseconds(lag.p99), "p99 of the control API", false));
    }
    if let Some(drift) = &report.ticker_drift_us {
        tiles.push((milliseconds(drift.p999), "p99.9 drift of the control thread's ticker", false));
    }
    if let Some(memory) = &report.memory_bytes {
        tiles.push((mib(memory.peak as f64 / MIB), "node's memory at most", false));
    }
    let mut html = String::from("<div class=\"tiles\">\n");
    for (value, name, bad) in tiles {
        let class = if bad { "card tile bad" } else { "card tile" };
        let _ = writeln!(html, "<div class=\"{class}\"><b>{}</b><small>{name}</small></div>", escaped(&value));
    }
    html.push_str("</div>\n");
    html
}

fn card(title: &str, body: &str) -> String {
    format!("<section class=\"card\">\n<h2>{title}</h2>\n{body}</section>\n")
}

const MIB: f64 = 1024.0 * 1024.0;

fn mib(value: f64) -> String {
    format!("{value:.0} MiB")
}

fn ms(value: f64) -> String {
    if value < 10.0 { format!("{value:.1} ms") } else { format!("{value:.0} ms") }
}

fn count(value: f64) -> String {
    format!("{value:.0}")
}

fn seconds(value: f64) -> String {
    if value < 10.0 { format!("{value:.1} s") } else { format!("{value:.0} s") }
}

/// The percentiles, each step halving what is slower, on a logarithmic scale.
fn latency(detail: &Detail) -> String {
    let names = [(0.0, "0"), (0.5, "50"), (0.75, "75"), (0.9375, "94"), (0.984, "98.4"), (0.998, "99.8"), (1.0, "max")];
    let last = detail.curve.len().saturating_sub(1);
    let points: Vec<(f64, f64)> =
        detail.curve.iter().enumerate().map(|(place, (_, us))| (place as f64, *us as f64 / 1e3)).collect();
    let ticks = detail.curve.iter().enumerate().filter_map(|(place, (quantile, _))| {
        let name = names.iter().find(|(named, _)| named == quantile)?.1;
        Some((place as f64, name.to_owned()))
    });
    let chart = Chart { x_max: last as f64, ticks: ticks.collect(), y_format: ms, logarithmic: true };
    chart.line(&points)
}

/// The course, in as many columns as can be told apart.
fn rate(detail: &Detail) -> String {
    let columns = columns(&detail.slots);
    let Some(per_column) = columns.1 else { return nothing("no handshakes") };
    let seconds_of = |column: usize| (column as u64 * per_column * SLOT_MS) as f64 / 1e3;
    let width = (per_column * SLOT_MS) as f64 / 1e3;
    let bars: Vec<(f64, f64)> =
        columns.0.iter().map(|slot| (slot.completed as f64 / width, slot.failed as f64 / width)).collect();
    let x_max = seconds_of(columns.0.len());
    let chart = Chart { x_max, ticks: chart::even_ticks(x_max, seconds), y_format: count, logarithmic: false };
    chart.bars(&bars)
}

/// Slots put together, and how many make a column.
fn columns(slots: &[Slot]) -> (Vec<Slot>, Option<u64>) {
    if slots.is_empty() {
        return (Vec::new(), None);
    }
    let per_column = slots.len().div_ceil(COLUMNS);
    let sum = |slots: &[Slot]| {
        slots.iter().fold(Slot::default(), |sum, slot| Slot {
            completed: sum.completed + slot.completed,
            failed: sum.failed + slot.failed,
            slowest_us: sum.slowest_us.max(slot.slowest_us),
        })
    };
    (slots.chunks(per_column).map(sum).collect(), Some(per_column as u64))
}

fn over_beats(
    detail: &Detail,
    none: &str,
    value: impl Fn(&super::watch::Beat) -> f64,
    y_format: fn(f64) -> String,
) -> String {
    let last = detail.beats.last().map_or(0, |beat| beat.at_ms) as f64 / 1e3;
    if detail.beats.len() < 2 || last <= 0.0 {
        return nothing(none);
    }
    // The worst of each column: what is asked is how bad it got.
    let per_column = detail.beats.len().div_ceil(COLUMNS * 2);
    let worst = |beats: &[super::watch::Beat]| {
        let at = beats.first().map_or(0, |beat| beat.at_ms) as f64 / 1e3;
        (at, beats.iter().map(&value).fold(0.0, f64::max))
    };
    let points: Vec<(f64, f64)> = detail.beats.chunks(per_column).map(worst).collect();
    let chart = Chart { x_max: last, ticks: chart::even_ticks(last, seconds), y_format, logarithmic: false };
    chart.line(&points)
}

fn nothing(why: &str) -> String {
    format!("<p class=\"soft\">{why}</p>\n")
}

fn outcomes(report: &Report) -> String {
    let mut html = String::from(
        "<table>\n<tr><th>kind</th><th></th><th class=\"n\">completed</th><th class=\"n\">failed</th>\
         <th class=\"n\">p50</th><th class=\"n\">p99</th></tr>\n",
    );
    for of_kind in &report.kinds {
        let all = (of_kind.completed + of_kind.failed).max(1) as f64;
        let share = |count: u64| count as f64 * 100.0 / all;
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td><div class=\"share\"><i style=\"width:{:.1}%\"></i><i class=\"bad\" style=\"width:{:.1}%\"></i>\
             </div></td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            of_kind.kind.as_str(),
            share(of_kind.completed),
            share(of_kind.failed),
            of_kind.completed,
            of_kind.failed,
            of_kind.latency_us.map_or_else(String::new, |latency| milliseconds(latency.p50)),
            of_kind.latency_us.map_or_else(String::new, |latency| milliseconds(latency.p99)),
        );
    }
    html.push_str("</table>\n");
    html
}

fn faults(detail: &Detail) -> String {
    if detail.faults.is_empty() {
        return nothing("Nothing.");
    }
    let rows: String = detail
        .faults
        .iter()
        .map(|(text, count)| format!("<tr><td>{}</td><td class=\"n\">{count}</td></tr>\n", escaped(text)))
        .collect();
    format!("<table>\n{rows}</table>\n")
}

fn options(report: &Report) -> String {
    let value = serde_json::to_value(&report.options).unwrap_or_default();
    let rows: String = value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("<tr><th>{}</th><td class=\"n\">{}</td></tr>\n", escaped(name), escaped(&text))
        })
        .collect();
    format!("<table>\n{rows}</table>\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::storm::kind::Kind;
    use crate::storm::ledger::Truth;
    use crate::storm::measure::Tally;
    use crate::storm::plan::{Plan, Wishes};
    use crate::storm::report::Remains;

    #[test]
    fn the_page_needs_nothing_else_and_escapes_what_it_shows() {
        let plan = Plan::of(Wishes::default(), Some("<script>&".into()), true, 1).unwrap();
        let mut tally = Tally::new().unwrap();
        for number in 1..=500u64 {
            tally.completed(Kind::New, Duration::from_millis(number * 7), Duration::from_micros(number * 100));
        }
        tally.failed(Kind::New, Duration::from_millis(30), "a<b");
        let report = Report::of(&plan, &tally, Truth::default(), Remains::default(), None, None);
        let html = page(&report, &Detail::of(&tally, None, 1, "somehow".into()));
        assert!(html.contains("&lt;script&gt;&amp;") && html.contains("a&lt;b"));
        for outside in ["<script", "http:", "https:", "url(", "@import", "NaN", "inf"] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(html.matches("<section").count(), html.matches("</section>").count());
        // Nothing at all is drawn without a fault, too.
        let mut empty = Tally::new().unwrap();
        empty.failed(Kind::New, Duration::ZERO, "refused");
        let report = Report::of(&plan, &empty, Truth::default(), Remains::default(), None, None);
        let html = page(&report, &Detail::of(&empty, None, 1, "somehow".into()));
        assert!(html.contains("Nothing was completed") && !html.contains("NaN"));
    }
}
