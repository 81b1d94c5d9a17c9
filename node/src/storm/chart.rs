//! Drawings as SVG: a line over a number, and bars over time. Small enough for a phone, plain enough to read.

use std::fmt::Write;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 22.0;

/// The frame of a drawing.
pub(super) struct Chart {
    pub(super) x_max: f64,
    /// Places on the lower edge and what is written there.
    pub(super) ticks: Vec<(f64, String)>,
    pub(super) y_format: fn(f64) -> String,
    pub(super) logarithmic: bool,
}

/// Five places from zero to `x_max`.
pub(super) fn even_ticks(x_max: f64, format: fn(f64) -> String) -> Vec<(f64, String)> {
    (0..=4).map(|step| x_max * f64::from(step) / 4.0).map(|at| (at, format(at))).collect()
}

/// A round number that is not smaller: 1, 2 or 5 times a power of ten.
fn rounded_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let scale = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * scale).find(|step| *step >= value * 0.999).unwrap_or(value)
}

/// The scale on the left: values and their places.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64> + Clone, logarithmic: bool) -> Scale {
        let high = rounded_up(values.clone().fold(0.0, f64::max));
        let smallest = values.filter(|value| *value > 0.0).fold(high, f64::min);
        let low = if logarithmic { 10f64.powf(smallest.log10().floor()).min(high / 10.0) } else { 0.0 };
        Scale { low, high, logarithmic }
    }

    fn y(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            let value = value.max(self.low);
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            value / self.high
        };
        TOP + (1.0 - share.clamp(0.0, 1.0)) * (HEIGHT - TOP - BOTTOM)
    }

    fn lines(&self) -> Vec<f64> {
        if !self.logarithmic {
            return (0..=4).map(|step| self.high * f64::from(step) / 4.0).collect();
        }
        let mut lines = vec![self.low];
        while let Some(last) = lines.last().copied().filter(|last| last * 10.0 <= self.high * 1.001) {
            lines.push(last * 10.0);
        }
        if lines.last().is_some_and(|last| self.high / last > 2.5) {
            lines.push(self.high);
        }
        lines
    }
}

impl Chart {
    fn x(&self, value: f64) -> f64 {
        LEFT + value / self.x_max.max(1e-9) * (WIDTH - LEFT - RIGHT)
    }

    fn frame(&self, scale: &Scale) -> String {
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n");
        for value in scale.lines() {
            let (y, right) = (scale.y(value), WIDTH - RIGHT);
            let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>");
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                (self.y_format)(value)
            );
        }
        for (place, (at, name)) in self.ticks.iter().enumerate() {
            let anchor = if place + 1 == self.ticks.len() { "end" } else { "middle" };
            let x = if anchor == "end" { self.x(*at) + RIGHT - 2.0 } else { self.x(*at) };
            let y = HEIGHT - 6.0;
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{name}</text>");
        }
        svg
    }

    /// A line with the area under it.
    pub(super) fn line(&self, points: &[(f64, f64)]) -> String {
        let scale = Scale::of(points.iter().map(|(_, y)| *y), self.logarithmic);
        let mut svg = self.frame(&scale);
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{:.1} {:.1}", self.x(*x), scale.y(*y))).collect();
        if let (Some(first), Some(last)) = (points.first(), points.last()) {
            let (floor, line) = (HEIGHT - BOTTOM, path.join("L"));
            let (from, to) = (self.x(first.0), self.x(last.0));
            let _ = writeln!(svg, "<path class=\"area\" d=\"M{line}L{to:.1} {floor}L{from:.1} {floor}Z\"/>");
            let _ = writeln!(svg, "<path class=\"curve\" d=\"M{line}\"/>");
            if points.len() <= 20 {
                for (x, y) in points {
                    let (x, y) = (self.x(*x), scale.y(*y));
                    let _ = write!(svg, "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>");
                }
            }
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Bars of two parts beside each other over the whole width: what went well, and on it what did not.
    pub(super) fn bars(&self, bars: &[(f64, f64)]) -> String {
        let scale = Scale::of(bars.iter().map(|(good, bad)| good + bad), false);
        let mut svg = self.frame(&scale);
        let width = (WIDTH - LEFT - RIGHT) / bars.len().max(1) as f64;
        for (place, (good, bad)) in bars.iter().enumerate() {
            let x = LEFT + width * place as f64;
            let mut part = |class: &str, from: f64, to: f64| {
                let (top, bottom) = (scale.y(to), scale.y(from));
                if bottom - top > 0.05 {
                    let (wide, high) = ((width * 0.86).max(0.5), bottom - top);
                    let _ = writeln!(
                        svg,
                        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\"/>"
                    );
                }
            };
            part("bar", 0.0, *good);
            part("bar bad", *good, good + bad);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_round() {
        for (value, expected) in [(0.0, 1.0), (0.7, 1.0), (3.0, 5.0), (1_200.0, 2_000.0), (5_100.0, 10_000.0)] {
            assert_eq!(rounded_up(value), expected, "{value}");
        }
        let scale = Scale::of([0.3, 40.0].into_iter(), true);
        assert!((scale.low - 0.1).abs() < 1e-9 && (scale.high - 50.0).abs() < 1e-9);
        assert_eq!(scale.lines().len(), 4);
    }
}
