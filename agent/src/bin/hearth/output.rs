//! Tables for people, JSON for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use crate::failure::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns, human sizes and ages.
    #[default]
    Table,
    /// The API's answer as proto3 JSON: one document; for `events`, one a line.
    Json,
}

/// Prints a message of `hearth.v1` as one indented JSON document.
pub fn json(name: &str, message: &impl Message) -> Result<(), Failure> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::pretty(&mut text);
    dynamic(name, message)?
        .serialize_with_options(&mut serializer, &json_options())
        .map_err(|error| Failure::new(format!("no JSON for {name}: {error}")))?;
    text.push(b'\n');
    bytes(&text)
}

/// Prints a message of `hearth.v1` as one line of JSON.
pub fn json_line(name: &str, message: &impl Message) -> Result<(), Failure> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    dynamic(name, message)?
        .serialize_with_options(&mut serializer, &json_options())
        .map_err(|error| Failure::new(format!("no JSON for {name}: {error}")))?;
    text.push(b'\n');
    bytes(&text)
}

/// Fields that hold their default value are printed too, so that a program finds every name.
fn json_options() -> SerializeOptions {
    SerializeOptions::new().skip_default_fields(false)
}

fn dynamic(name: &str, message: &impl Message) -> Result<DynamicMessage, Failure> {
    let pool = DescriptorPool::decode(hearth_proto::FILE_DESCRIPTOR_SET).map_err(|error| {
        Failure::new(format!("the built-in API description is broken: {error}"))
    })?;
    let descriptor = pool
        .get_message_by_name(&format!("hearth.v1.{name}"))
        .ok_or_else(|| Failure::new(format!("hearth.v1.{name} is not in the API description")))?;
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic
        .transcode_from(message)
        .map_err(|error| Failure::new(format!("no JSON for {name}: {error}")))?;
    Ok(dynamic)
}

/// Prints rows under a header. `right` names the columns (from 0) that hold numbers.
pub fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec())
        .add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    print(&table)
}

/// Prints one object: a name and a value on each line; lines without a value are left out.
pub fn fields(rows: Vec<(&str, String)>) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([format!("{name}:"), value]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    print(&table)
}

fn print(table: &Table) -> Result<(), Failure> {
    let text: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    line(&text.join("\n"))
}

/// Prints one line (or several, joined by `\n`).
pub fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes to standard output. A reader that went away (`| head`) ends the command, quietly.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::new(format!("standard output: {error}"))),
    }
}
