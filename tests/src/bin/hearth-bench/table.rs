//! What is printed and written: sections of rows, each our figure beside a peer's.

use serde::Serialize;

/// Rows that were measured in the same way.
#[derive(Serialize)]
pub struct Section {
    pub title: String,
    pub columns: Columns,
    pub rows: Vec<Row>,
}

/// What the figures of a row are.
#[derive(Serialize)]
pub struct Columns {
    pub ours: &'static str,
    pub peer: &'static str,
    pub bare: &'static str,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            ours: "ours",
            peer: "QEMU",
            bare: "host",
        }
    }
}

/// One figure.
#[derive(Serialize)]
pub struct Row {
    /// What it is, with its unit.
    pub what: String,
    pub ours: Option<f64>,
    pub peer: Option<f64>,
    /// Ours divided by the peer's.
    pub ratio: Option<f64>,
    /// The same without what is measured, such as without any machine.
    pub bare: Option<f64>,
}

impl Row {
    /// A figure that only we have.
    pub fn alone(what: impl Into<String>, ours: f64) -> Self {
        Self {
            what: what.into(),
            ours: Some(ours),
            peer: None,
            ratio: None,
            bare: None,
        }
    }

    /// A figure that the peer, mostly QEMU, has too.
    pub fn beside(what: impl Into<String>, ours: f64, peer: f64) -> Self {
        Self::of_both(what, Some(ours), Some(peer))
    }

    /// A figure that one of the two may lack.
    pub fn of_both(what: impl Into<String>, ours: Option<f64>, peer: Option<f64>) -> Self {
        Self {
            what: what.into(),
            ours,
            peer,
            ratio: ours.zip(peer).map(|(ours, peer)| ours / peer),
            bare: None,
        }
    }
}

impl Section {
    pub fn new(title: impl Into<String>, rows: Vec<Row>) -> Self {
        Self {
            title: title.into(),
            columns: Columns::default(),
            rows,
        }
    }

    /// Of other things than our machine and QEMU's.
    pub fn of(title: impl Into<String>, columns: Columns, rows: Vec<Row>) -> Self {
        Self {
            columns,
            ..Self::new(title, rows)
        }
    }

    pub fn print(&self) {
        let Columns { ours, peer, bare } = self.columns;
        println!(
            "\n{:<50}{ours:>12}{peer:>12}{:>8}{bare:>12}",
            self.title, "ratio"
        );
        let figure = |value: Option<f64>| match value {
            Some(value) if value.abs() >= 1000.0 => format!("{value:.0}"),
            Some(value) if value.abs() >= 1.0 => format!("{value:.1}"),
            Some(value) => format!("{value:.3}"),
            None => "-".to_owned(),
        };
        for row in &self.rows {
            let ratio = match row.ratio {
                Some(ratio) if ratio >= 100.0 => format!("{ratio:.0}"),
                Some(ratio) => format!("{ratio:.3}"),
                None => "-".to_owned(),
            };
            println!(
                "  {:<48}{:>12}{:>12}{ratio:>8}{:>12}",
                row.what,
                figure(row.ours),
                figure(row.peer),
                figure(row.bare)
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
