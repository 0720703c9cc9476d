//! What is printed and written: sections of rows, each our figure beside a peer's.

use serde::Serialize;

/// Rows that were measured in the same way.
#[derive(Serialize)]
pub struct Section {
    pub title: String,
    pub rows: Vec<Row>,
}

/// One figure.
#[derive(Serialize)]
pub struct Row {
    /// What it is, with its unit.
    pub what: String,
    pub ours: f64,
    pub qemu: Option<f64>,
    /// Ours divided by QEMU's.
    pub ratio: Option<f64>,
    /// The same without any machine.
    pub host: Option<f64>,
}

impl Row {
    /// A figure that only we have.
    pub fn alone(what: impl Into<String>, ours: f64) -> Self {
        Self {
            what: what.into(),
            ours,
            qemu: None,
            ratio: None,
            host: None,
        }
    }

    /// A figure that QEMU has too.
    pub fn beside(what: impl Into<String>, ours: f64, qemu: f64) -> Self {
        Self {
            qemu: Some(qemu),
            ratio: Some(ours / qemu),
            ..Self::alone(what, ours)
        }
    }
}

impl Section {
    pub fn new(title: impl Into<String>, rows: Vec<Row>) -> Self {
        Self {
            title: title.into(),
            rows,
        }
    }

    pub fn print(&self) {
        println!(
            "\n{:<50}{:>12}{:>12}{:>8}{:>12}",
            self.title, "ours", "QEMU", "ratio", "host"
        );
        let figure = |value: Option<f64>| match value {
            Some(value) if value >= 1000.0 => format!("{value:.0}"),
            Some(value) => format!("{value:.1}"),
            None => "-".to_owned(),
        };
        for row in &self.rows {
            let ratio = row.ratio.map_or("-".to_owned(), |r| format!("{r:.3}"));
            println!(
                "  {:<48}{:>12}{:>12}{ratio:>8}{:>12}",
                row.what,
                figure(Some(row.ours)),
                figure(row.qemu),
                figure(row.host)
            );
        }
    }
}

/// The value below which this part of the values lies (0.5 is the median); 0 without values.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let at = part * last as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * at.fract()
}
