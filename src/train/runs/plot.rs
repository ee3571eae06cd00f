//! Curves of runs, as a picture.

use super::Records;
use crate::error::{Error, Result};
use plotters::prelude::*;

/// Width and height of the panel of one quantity, in pixels.
const PANEL: (u32, u32) = (640, 360);
/// Colours that are told apart, also by those who do not see red and green (Okabe and Ito 2008).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];
/// What is no curve to learn from.
const HIDDEN: [&str; 2] = ["seconds", "tokens_per_second"];

/// One curve.
struct Curve {
    label: String,
    color: RGBColor,
    validation: bool,
    points: Vec<(f64, f64)>,
}

/// An SVG of these runs: a panel for each quantity, training thin and validation thick, a colour a run.
pub fn plot(runs: &[(String, Records)]) -> Result<String> {
    let mut quantities: Vec<&str> = Vec::new();
    for name in runs.iter().flat_map(|(_, records)| records.names()) {
        let quantity = name.strip_prefix("val_").unwrap_or(name);
        if !quantities.contains(&quantity) && !HIDDEN.contains(&quantity) {
            quantities.push(quantity);
        }
    }
    // Of what was never finite there is nothing to draw.
    quantities.retain(|quantity| !curves(runs, quantity).is_empty());
    let rows = quantities.len().max(1).div_ceil(2) as u32;
    let columns = quantities.len().clamp(1, 2) as u32;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (columns * PANEL.0, rows * PANEL.1)).into_drawing_area();
        root.fill(&WHITE).map_err(drawing)?;
        let areas = root.split_evenly((rows as usize, columns as usize));
        for (area, quantity) in areas.iter().zip(&quantities) {
            panel(area, quantity, &curves(runs, quantity))?;
        }
        root.present().map_err(drawing)?;
    }
    Ok(svg)
}

/// The error of a picture that could not be drawn.
pub(in crate::train) fn drawing<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> Error {
    Error::internal(format!("plot: {error}"))
}

/// The curves of a quantity: of each run, in training and in validation.
fn curves(runs: &[(String, Records)], quantity: &str) -> Vec<Curve> {
    let mut all = Vec::new();
    for (number, (run, records)) in runs.iter().enumerate() {
        for (name, validation) in [(quantity.to_string(), false), (format!("val_{quantity}"), true)] {
            let points: Vec<(f64, f64)> = records.series(&name).into_iter().filter(|p| p.1.is_finite()).collect();
            if points.is_empty() {
                continue;
            }
            let kind = if validation { "validation" } else { "training" };
            let label = match (runs.len(), quantity) {
                (1, "learning_rate") => String::new(),
                (1, _) => kind.to_string(),
                (_, "learning_rate") => run.clone(),
                _ => format!("{run}, {kind}"),
            };
            // A single run has a colour for each; several have one each.
            let color = if runs.len() == 1 { usize::from(validation) } else { number };
            all.push(Curve { label, color: COLORS[color % COLORS.len()], validation, points });
        }
    }
    all
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn panel(area: &Area<'_>, quantity: &str, curves: &[Curve]) -> Result<()> {
    let all = || curves.iter().flat_map(|c| &c.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        (low, high)
    };
    let ((first, last), (low, high)) = (range(|p| p.0), range(|p| p.1));
    // What is always the same is in the middle.
    let margin = if high > low { 0.05 * (high - low) } else { (0.5 * high.abs()).max(1e-9) };
    let title = quantity.replace('_', " ");
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(64)
        .build_cartesian_2d(first..last.max(first + 1.0), low - margin..high + margin)
        .map_err(drawing)?;
    let digits = |v: &f64| match v.abs() {
        x if x != 0.0 && !(1e-3..1e5).contains(&x) => format!("{v:.1e}"),
        _ => format!("{v:.4}").trim_end_matches('0').trim_end_matches('.').to_string(),
    };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(RGBColor(120, 120, 120))
        .x_desc("epoch")
        .x_labels(((last - first) as usize + 1).clamp(2, 10))
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&digits)
        .label_style(("sans-serif", 13))
        .draw()
        .map_err(drawing)?;
    for Curve { label, color, validation, points } in curves {
        let style = ShapeStyle { color: color.mix(1.0), filled: true, stroke_width: if *validation { 3 } else { 1 } };
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), style)).map_err(drawing)?;
        if !label.is_empty() {
            line.label(label).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
        }
        // One point makes no line.
        if points.len() == 1 {
            chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, style))).map_err(drawing)?;
        }
    }
    if curves.iter().any(|c| !c.label.is_empty()) {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 13))
            .draw()
            .map_err(drawing)?;
    }
    Ok(())
}
