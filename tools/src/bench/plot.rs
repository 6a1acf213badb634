//! A picture of measurements: latency by percentile, and throughput over time.

use std::fmt::Write as _;

use super::measurement::{INTERVAL, Measurement};

/// An SVG with a line for each measurement.
#[must_use]
pub fn svg(title: &str, measured: &[(String, &Measurement)]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"20\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    let latencies = Panel {
        top: 50.0,
        title: "latency (ms) by percentile",
    };
    let lines: Vec<Line> = measured.iter().map(|(_, one)| by_percentile(one)).collect();
    let marks = PERCENTILES.map(|(share, name)| (nines(share), name.to_owned()));
    latencies.draw(&mut svg, &lines, &marks);
    let rates = Panel {
        top: 50.0 + PANEL_HEIGHT + 60.0,
        title: "requests per second over time (s)",
    };
    let lines: Vec<Line> = measured.iter().map(|(_, one)| over_time(one)).collect();
    let end = lines
        .iter()
        .flat_map(|line| line.last())
        .fold(0.0_f64, |end, (x, _)| end.max(*x));
    let marks = [0.0, end / 2.0, end].map(|second| (second, format!("{second:.1}")));
    rates.draw(&mut svg, &lines, &marks);
    for (place, (name, _)) in measured.iter().enumerate() {
        let (x, y) = (MARGIN + 200.0 * place as f64, HEIGHT - 12.0);
        let (colour, name) = (COLOURS[place % COLOURS.len()], escaped(name));
        push(
            &mut svg,
            format_args!("<text x=\"{x:.0}\" y=\"{y:.0}\" fill=\"{colour}\">{name}</text>\n"),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

type Line = Vec<(f64, f64)>;

struct Panel {
    top: f64,
    title: &'static str,
}

impl Panel {
    /// Lines over marks of the horizontal axis; the vertical one begins at 0.
    fn draw(&self, svg: &mut String, lines: &[Line], marks: &[(f64, String)]) {
        let points = || lines.iter().flatten();
        let x_max = marks.last().map_or(1.0, |(x, _)| x.max(1e-9));
        let y_max = points().fold(1e-9_f64, |max, (_, y)| max.max(*y));
        let bottom = self.top + PANEL_HEIGHT;
        let x_of = |x: f64| MARGIN + x.min(x_max) / x_max * (WIDTH - 2.0 * MARGIN);
        let y_of = |y: f64| bottom - y / y_max * PANEL_HEIGHT;
        let (left, right, title) = (MARGIN, WIDTH - MARGIN, self.title);
        push(
            svg,
            format_args!(
                "<text x=\"{left}\" y=\"{:.0}\">{title}</text>\n\
                 <path d=\"M{left} {:.0}V{bottom:.0}H{right:.0}\" fill=\"none\" stroke=\"black\"/>\n",
                self.top - 8.0,
                self.top
            ),
        );
        for (x, name) in marks {
            let (x, y) = (x_of(*x), bottom + 16.0);
            push(
                svg,
                format_args!(
                    "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"middle\">{name}</text>\n"
                ),
            );
        }
        for share in [0.5, 1.0] {
            let (value, y) = (y_max * share, y_of(y_max * share));
            let digits = usize::from(value < 100.0) * 2;
            push(
                svg,
                format_args!(
                    "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{value:.digits$}</text>\n\
                     <path d=\"M{left} {y:.1}H{right:.0}\" stroke=\"#ddd\"/>\n",
                    left - 6.0,
                    y + 4.0
                ),
            );
        }
        for (place, line) in lines.iter().enumerate() {
            let points = line.iter();
            let points = points.map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y)));
            let points: Vec<String> = points.collect();
            let (points, colour) = (points.join(" "), COLOURS[place % COLOURS.len()]);
            push(
                svg,
                format_args!(
                    "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" \
                     stroke-width=\"1.5\"/>\n"
                ),
            );
        }
    }
}

/// Each nine more is as far again.
fn nines(share: f64) -> f64 {
    -(1.0 - share).log10()
}

fn by_percentile(one: &Measurement) -> Line {
    let steps = 0..=150;
    let shares = steps.map(|step| 1.0 - 10_f64.powf(-f64::from(step) / 50.0));
    shares
        .map(|share| (nines(share), one.latency(share) as f64 / 1e3))
        .collect()
}

fn over_time(one: &Measurement) -> Line {
    let seconds = INTERVAL.as_secs_f64();
    let counts = one.answers.iter().enumerate();
    counts
        .map(|(place, count)| (place as f64 * seconds, *count as f64 / seconds))
        .collect()
}

fn push(svg: &mut String, what: std::fmt::Arguments) {
    svg.write_fmt(what).expect("a string takes all");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 660.0;
const MARGIN: f64 = 70.0;
const PANEL_HEIGHT: f64 = 220.0;
const COLOURS: [&str; 6] = [
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf",
];
const PERCENTILES: [(f64, &str); 5] = [
    (0.0, "0"),
    (0.5, "50"),
    (0.9, "90"),
    (0.99, "99"),
    (0.999, "99.9"),
];
