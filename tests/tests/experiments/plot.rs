//! Curves as SVG, and as CSV.

use std::fmt::Write as _;

/// Values at the same steps of time.
pub(crate) struct Curve {
    /// What it is.
    pub(crate) name: &'static str,
    /// Its colour.
    pub(crate) colour: &'static str,
    /// A value a step.
    pub(crate) values: Vec<f64>,
}

/// Several curves over the same time.
pub(crate) struct Plot {
    /// What the values are.
    pub(crate) title: String,
    /// Seconds between two values.
    pub(crate) step: f64,
    /// From and to when, in seconds, something was wrong.
    pub(crate) trouble: (f64, f64),
    /// The curves.
    pub(crate) curves: Vec<Curve>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const BETWEEN: f64 = 80.0;

/// All plots, one below the other.
pub(crate) fn svg(plots: &[Plot]) -> String {
    let (width, height) = (LEFT + WIDTH + 20.0, (HEIGHT + BETWEEN) * plots.len() as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (n, plot) in plots.iter().enumerate() {
        let _ = writeln!(out, "<g transform=\"translate({LEFT} {})\">", TOP + (HEIGHT + BETWEEN) * n as f64);
        draw(plot, &mut out);
        out += "</g>\n";
    }
    out + "</svg>\n"
}

fn draw(plot: &Plot, out: &mut String) {
    let steps = plot.curves.iter().map(|c| c.values.len()).max().unwrap_or(0).max(2);
    let most = plot.curves.iter().flat_map(|c| &c.values).fold(1.0_f64, |most, value| most.max(*value));
    let unit = 10_f64.powf(most.log10().floor());
    let tick = if most / unit >= 5.0 { unit } else { unit / 2.0 };
    let top = (most / tick).ceil() * tick;
    let seconds = (steps - 1) as f64 * plot.step;
    let (x, y) = (|t: f64| t / seconds * WIDTH, |value: f64| HEIGHT - value / top * HEIGHT);
    let (from, to) = plot.trouble;
    let _ = writeln!(
        out,
        "<rect x=\"{:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"#f3e3e3\"/>\n<text x=\"0\" y=\"-22\" font-weight=\"bold\">{}</text>",
        x(from),
        x(to) - x(from),
        plot.title
    );
    let mut value = 0.0;
    while value <= top {
        let at = y(value);
        let _ = writeln!(
            out,
            "<line x1=\"0\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"-8\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            at + 4.0
        );
        value += tick;
    }
    let every = (seconds / 10.0).ceil().max(1.0);
    let mut second = 0.0;
    while second <= seconds {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{second} s</text>",
            x(second),
            HEIGHT + 18.0
        );
        second += every;
    }
    for (n, curve) in plot.curves.iter().enumerate() {
        let point =
            |(step, value): (usize, &f64)| format!("{:.1},{:.1}", x(step as f64 * plot.step), y(*value));
        let points: Vec<_> = curve.values.iter().enumerate().map(point).collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{0}\" stroke-width=\"2\" points=\"{1}\"/>\n<text x=\"{2}\" y=\"-6\" fill=\"{0}\">{3}</text>",
            curve.colour,
            points.join(" "),
            n as f64 * 210.0,
            curve.name
        );
    }
}

/// The values of all plots, a line for each step.
pub(crate) fn csv(plots: &[Plot]) -> String {
    let curves: Vec<_> = plots
        .iter()
        .flat_map(|p| p.curves.iter().map(move |c| (format!("{}: {}", p.title, c.name), c)))
        .collect();
    let names: Vec<_> = curves.iter().map(|(name, _)| name.replace(',', "")).collect();
    let mut out = format!("seconds,{}\n", names.join(","));
    let steps = curves.iter().map(|(_, c)| c.values.len()).max().unwrap_or(0);
    let step = plots.first().map_or(1.0, |p| p.step);
    for n in 0..steps {
        let values: Vec<_> = curves
            .iter()
            .map(|(_, c)| c.values.get(n).map(|v| format!("{v:.1}")).unwrap_or_default())
            .collect();
        let _ = writeln!(out, "{:.2},{}", n as f64 * step, values.join(","));
    }
    out
}
