//! The plots of the report, as SVG.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

const SIZE: (u32, u32) = (720, 400);
/// From here on bars lie closer together.
const MANY_BARS: usize = 8;
const FONT: &str = "sans-serif";
/// Distinguishable also for the colour-blind (Okabe and Ito, 2008).
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Points under a name.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// What is written on a plot.
#[derive(Clone, Copy)]
pub(crate) struct Labels {
    pub(crate) title: &'static str,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
}

/// A bar with an interval and the limit that it has to keep.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) low: f64,
    pub(crate) middle: f64,
    pub(crate) high: f64,
    pub(crate) limit: Option<f64>,
    /// Something to compare with.
    pub(crate) pale: bool,
}

fn failed<E: std::fmt::Display>(err: E) -> anyhow::Error {
    anyhow!("cannot draw: {err}")
}

/// 1.5 k, 20 M: for axes.
fn short(value: &f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 1e6 => (value / 1e6, " M"),
        v if v >= 1e3 => (value / 1e3, " k"),
        _ => (*value, ""),
    };
    let text = format!("{value:.2}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

fn drawn(draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    // Scales with the page.
    Ok(svg.replacen(&format!("width=\"{}\" height=\"{}\" ", SIZE.0, SIZE.1), "", 1))
}

/// Lines through points; both axes begin at 0, or x is logarithmic.
pub(crate) fn lines(labels: Labels, series: &[Series], log_x: bool) -> Result<String> {
    let all = || series.iter().flat_map(|s| &s.points);
    let (x_min, x_max) = all().fold((f64::MAX, 0.0f64), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
    let y_max = all().map(|(_, y)| *y).fold(1e-9, f64::max) * 1.1;
    anyhow::ensure!(all().next().is_some(), "no points");
    drawn(|area| {
        let mut builder = ChartBuilder::on(area);
        builder.caption(labels.title, (FONT, 20)).margin(12).x_label_area_size(42).y_label_area_size(64);
        macro_rules! draw {
            ($chart:expr) => {{
                let mut chart = $chart.map_err(failed)?;
                chart
                    .configure_mesh()
                    .light_line_style(WHITE)
                    .bold_line_style(RGBColor(225, 225, 225))
                    .x_desc(labels.x)
                    .y_desc(labels.y)
                    .x_label_formatter(&short)
                    .y_label_formatter(&short)
                    .label_style((FONT, 14))
                    .axis_desc_style((FONT, 15))
                    .draw()
                    .map_err(failed)?;
                for (line, color) in series.iter().zip(COLORS.iter().cycle()) {
                    let style = color.stroke_width(2);
                    chart
                        .draw_series(LineSeries::new(line.points.clone(), style))
                        .map_err(failed)?
                        .label(line.name.clone())
                        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
                    let dots = line.points.iter().map(|point| Circle::new(*point, 4, color.filled()));
                    chart.draw_series(dots).map_err(failed)?;
                }
                if series.len() > 1 {
                    chart
                        .configure_series_labels()
                        .position(SeriesLabelPosition::UpperRight)
                        .background_style(WHITE.mix(0.85))
                        .border_style(RGBColor(200, 200, 200))
                        .label_font((FONT, 14))
                        .draw()
                        .map_err(failed)?;
                }
            }};
        }
        if log_x {
            draw!(builder.build_cartesian_2d((x_min / 1.3..x_max * 1.3).log_scale(), 0.0..y_max));
        } else {
            draw!(builder.build_cartesian_2d(0.0..x_max * 1.05, 0.0..y_max));
        }
        Ok(())
    })
}

/// Horizontal bars with intervals; the limit is a red line.
pub(crate) fn bars(labels: Labels, bars: &[Bar]) -> Result<String> {
    let ends = |bar: &Bar| [bar.low, bar.high, bar.limit.unwrap_or(0.0)];
    let low = bars.iter().flat_map(ends).fold(0.0, f64::min);
    let high = bars.iter().flat_map(ends).fold(1.0, f64::max);
    let room = (high - low) * 0.08;
    anyhow::ensure!(!bars.is_empty(), "no bars");
    drawn(|area| {
        let x = (if low < 0.0 { low - room } else { 0.0 })..high + room;
        let mut chart = ChartBuilder::on(area)
            .caption(labels.title, (FONT, 20))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(190)
            .build_cartesian_2d(x, (0..bars.len() - 1).into_segmented())
            .map_err(failed)?;
        let name = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(i) => bars.get(bars.len() - 1 - i).map_or(String::new(), |bar| bar.name.clone()),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_desc(labels.x)
            .x_label_formatter(&short)
            .y_labels(bars.len())
            .y_label_formatter(&name)
            .label_style((FONT, 14))
            .axis_desc_style((FONT, 15))
            .draw()
            .map_err(failed)?;
        for (i, bar) in bars.iter().enumerate() {
            let row = bars.len() - 1 - i;
            let (bottom, top) = (SegmentValue::Exact(row), SegmentValue::Exact(row + 1));
            let color = if bar.pale { COLORS[5].mix(0.5) } else { COLORS[0].mix(0.75) };
            let mut block = Rectangle::new([(0.0, bottom), (bar.middle, top)], color.filled());
            let margin = if bars.len() > MANY_BARS { 2 } else { 9 };
            block.set_margin(margin, margin, 0, 0);
            chart.draw_series([block]).map_err(failed)?;
            let center = SegmentValue::CenterOf(row);
            let whisker = [(bar.low, center.clone()), (bar.high, center)];
            chart.draw_series([PathElement::new(whisker.to_vec(), BLACK.stroke_width(2))]).map_err(failed)?;
            if let Some(limit) = bar.limit {
                let line = vec![(limit, SegmentValue::Exact(row)), (limit, SegmentValue::Exact(row + 1))];
                chart.draw_series([PathElement::new(line, RED.stroke_width(3))]).map_err(failed)?;
            }
        }
        Ok(())
    })
}
