//! A series with what is forecast of it, as a picture.

use super::{Forecast, Forecaster};
use crate::data::Table;
use crate::error::Result;
use crate::train::runs::drawing;
use plotters::prelude::*;

/// Width and height of the panel of one column, in pixels.
const PANEL: (u32, u32) = (860, 320);
const KNOWN: RGBColor = RGBColor(60, 60, 60);
const FORECAST: RGBColor = RGBColor(0, 114, 178);
/// Rows that are drawn before the forecast, as a multiple of it.
const BEFORE: usize = 6;

impl Forecaster {
    /// An SVG of the end of each column and what comes after it; `level` is that of the intervals.
    pub fn plot(&self, table: &Table, forecast: &Forecast, level: f64) -> Result<String> {
        let mut svg = String::new();
        {
            let columns = table.columns.len();
            let root = SVGBackend::with_string(&mut svg, (PANEL.0, columns as u32 * PANEL.1)).into_drawing_area();
            root.fill(&WHITE).map_err(drawing)?;
            let areas = root.split_evenly((columns, 1));
            for (column, area) in areas.iter().enumerate() {
                self.panel(area, table, forecast, column, level)?;
            }
            root.present().map_err(drawing)?;
        }
        Ok(svg)
    }

    fn panel(
        &self,
        area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        table: &Table,
        forecast: &Forecast,
        column: usize,
        level: f64,
    ) -> Result<()> {
        let (rows, values) = (table.len(), &table.columns[column]);
        let first = rows.saturating_sub(BEFORE * forecast.values.len().max(8));
        let known: Vec<(f64, f64)> = (first..rows).map(|t| (t as f64 + 1.0, f64::from(values[t]))).collect();
        let last = known.last().copied().unwrap_or_default();
        let ahead = |of: &dyn Fn(usize) -> f32| -> Vec<(f64, f64)> {
            let after = (0..forecast.values.len()).map(|a| ((rows + a) as f64 + 1.0, f64::from(of(a))));
            [last].into_iter().chain(after).collect()
        };
        let middle = ahead(&|a| forecast.values[a][column]);
        let (low, high) = (ahead(&|a| forecast.intervals[a][column].0), ahead(&|a| forecast.intervals[a][column].1));
        let all = known.iter().chain(&middle).chain(&low).chain(&high).map(|p| p.1).filter(|v| v.is_finite());
        let (least, most) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let margin = (0.05 * (most - least)).max(1e-6);
        let end = (rows + forecast.values.len()) as f64 + 1.0;
        let mut chart = ChartBuilder::on(area)
            .caption(&table.names[column], ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(34)
            .y_label_area_size(70)
            .build_cartesian_2d(first as f64 + 1.0..end, least - margin..most + margin)
            .map_err(drawing)?;
        let moment = |x: &f64| {
            let row = *x as usize;
            match (row > rows, &table.moments) {
                (true, _) => format!("+{}", row - rows),
                (false, Some(moments)) => moments.get(row.saturating_sub(1)).cloned().unwrap_or_default(),
                (false, None) => format!("{row}"),
            }
        };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .axis_style(RGBColor(120, 120, 120))
            .x_labels(8)
            .x_label_formatter(&moment)
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(drawing)?;
        let band: Vec<(f64, f64)> = low.iter().copied().chain(high.iter().rev().copied()).collect();
        let shade = FORECAST.mix(0.18);
        chart
            .draw_series([Polygon::new(band, shade.filled())])
            .map_err(drawing)?
            .label(format!("{:.0} % interval", 100.0 * level))
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], shade.filled()));
        for (points, color, label, width) in [(known, KNOWN, "series", 1), (middle, FORECAST, "forecast", 2)] {
            let style = color.stroke_width(width);
            chart
                .draw_series(LineSeries::new(points, style))
                .map_err(drawing)?
                .label(label)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 13))
            .draw()
            .map_err(drawing)
    }
}
