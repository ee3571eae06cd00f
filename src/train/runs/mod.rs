//! A folder for each training: how it was set up, where it ran, how it went, in figures and as a picture, and its checkpoints.
//!
//! | file | what |
//! | --- | --- |
//! | `config.json` | what the caller says of the training, with its seed |
//! | `environment.json` | the version, the machine and the device |
//! | `history.csv`, `history.json` | each epoch's values by name |
//! | `history.svg` | the same as curves |
//! | `events.out.tfevents.*` | the same for TensorBoard, a file a process |
//! | `checkpoints/` | the last epoch's model and the best one's, with the state of training |

mod events;
mod plot;

pub use events::EventWriter;
pub(super) use plot::drawing;
pub use plot::plot;

use super::callbacks::{Callback, Training};
use super::fit::Epoch;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const HISTORY: &str = "history.json";

/// What one epoch came to, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1.
    pub epoch: usize,
    /// Values by name, in the order in which they are shown. Validation's begin with `val_`. What is not finite is `null` in files.
    #[serde(deserialize_with = "perhaps")]
    pub values: Vec<(String, f64)>,
}

/// Values of which some may be `null`, which is how JSON has what is not finite.
fn perhaps<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Vec<(String, f64)>, D::Error> {
    let values = Vec::<(String, Option<f64>)>::deserialize(from)?;
    Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

impl Record {
    fn value(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|v| v.0 == name).map(|v| v.1)
    }
}

/// All epochs of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Records(pub Vec<Record>);

impl Records {
    /// The epochs of the run in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(HISTORY);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        serde_json::from_str(&text).map_err(|e| Error::data(format!("{}: not a history: {e}", path.display())))
    }

    /// The names of all values, in order of appearance.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.0.iter().flat_map(|r| &r.values) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// The epochs that have a value, with it.
    pub fn series(&self, name: &str) -> Vec<(f64, f64)> {
        self.0.iter().filter_map(|r| Some((r.epoch as f64, r.value(name)?))).collect()
    }

    /// The epochs of a file that [`Self::csv`] wrote.
    pub(super) fn read_csv(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<&str>>());
        let header = lines.next().unwrap_or_else(|| vec!["epoch"]);
        let record = |fields: Vec<&str>| {
            let number = |(name, field): (&&str, &&str)| Some((name.to_string(), field.parse::<f64>().ok()?));
            let epoch = fields.first().filter(|_| fields.len() == header.len())?.parse().ok()?;
            let given = header.iter().zip(&fields).skip(1).filter(|(_, field)| !field.is_empty());
            Some(Record { epoch, values: given.map(number).collect::<Option<_>>()? })
        };
        let records = lines.map(record).collect::<Option<Vec<Record>>>().filter(|_| header[0] == "epoch");
        records.map(Self).ok_or_else(|| Error::file(path, "expected a log of epochs, got another file"))
    }

    /// A line an epoch, empty where an epoch has no value.
    pub(super) fn csv(&self) -> String {
        let names = self.names();
        let mut text = format!("epoch,{}\n", names.join(","));
        for record in &self.0 {
            let values: Vec<String> =
                names.iter().map(|name| record.value(name).map_or_else(String::new, |v| v.to_string())).collect();
            text += &format!("{},{}\n", record.epoch, values.join(","));
        }
        text
    }
}

/// A run under way. As a [`Callback`] it records each epoch and keeps the checkpoints.
pub struct Run {
    folder: PathBuf,
    records: Records,
    events: EventWriter,
    checkpoints: bool,
}

impl Run {
    /// A new run in `folder`, which must not hold another.
    pub fn create(folder: &Path, configuration: &impl Serialize, seed: u64, device: &Device) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "make", e))?;
        let written = ["config.json", "environment.json", HISTORY, "history.csv", "history.svg", "checkpoints"];
        if let Some(there) = written.into_iter().find(|name| folder.join(name).exists()) {
            return Err(Error::argument(format!(
                "{}: holds a run already, or something else called {there}; expected a new folder, or training that is resumed",
                folder.display()
            )));
        }
        let folder = folder.to_path_buf();
        let configuration = serde_json::to_value(configuration)
            .map_err(|e| Error::argument(format!("run: the configuration cannot be written as JSON: {e}")))?;
        let configuration = json!({ "seed": seed, "training": configuration });
        write_json(&folder.join("config.json"), &configuration)?;
        write_json(&folder.join("environment.json"), &environment(device))?;
        let (events, records) = (EventWriter::create(&folder)?, Records::default());
        let run = Self { events, records, folder, checkpoints: true };
        run.write()?;
        Ok(run)
    }

    /// The folders for runs of this name under `parent`: the last that holds one, and the first that does not, of `NAME`,
    /// `NAME-2`, `NAME-3`, ...
    pub fn named(parent: &Path, name: &str) -> (Option<PathBuf>, PathBuf) {
        let of = |number: u32| parent.join(if number == 1 { name.to_string() } else { format!("{name}-{number}") });
        let mut number = 1;
        while of(number).exists() {
            number += 1;
        }
        let last = number.checked_sub(1).filter(|&n| n > 0).map(of).filter(|folder| Self::is_in(folder));
        (last, of(number))
    }

    /// Whether there is a run in `folder`.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(HISTORY).is_file()
    }

    /// The run in `folder`, to go on with.
    pub fn resume(folder: &Path) -> Result<Self> {
        let records = Records::read(folder)?;
        Ok(Self { events: EventWriter::create(folder)?, records, folder: folder.to_path_buf(), checkpoints: true })
    }

    /// Whether it keeps checkpoints as a [`Callback`]; it does unless told otherwise.
    #[must_use]
    pub fn keep_checkpoints(mut self, keep: bool) -> Self {
        self.checkpoints = keep;
        self
    }

    /// What its `config.json` says of the training.
    pub fn configuration(&self) -> Result<Value> {
        let path = self.folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        let all: Value = serde_json::from_str(&text).map_err(|e| Error::data(format!("{}: {e}", path.display())))?;
        Ok(all["training"].clone())
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its epochs so far.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The file for a checkpoint of this name.
    pub fn checkpoint(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join("checkpoints");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "make", e))?;
        Ok(folder.join(format!("{name}.safetensors")))
    }

    /// Files for what a training keeps of its best epoch ([`EarlyStopping::kept_in`](super::EarlyStopping::kept_in)) and of its last
    /// ([`Backup`](super::Backup)) until it ends.
    pub fn progress_files(&self) -> Result<[PathBuf; 2]> {
        Ok([self.checkpoint("progress-best")?, self.checkpoint("progress-last")?])
    }

    /// Removes [`Self::progress_files`], once what was trained is safe elsewhere.
    pub fn clear_progress(&self) -> Result<()> {
        for path in self.progress_files()? {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&path, "remove", e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether no epoch before had a better loss: of validation, where there ever was any.
    pub fn is_best(&self, record: &Record) -> bool {
        let name = self.watched([record]);
        let before = self.records.0.iter().filter(|r| r.epoch < record.epoch).filter_map(|r| finite(r, name));
        let best = before.reduce(f64::min);
        finite(record, name).is_some_and(|now| best.is_none_or(|best| now < best))
    }

    /// Epochs since that of the best loss; all of them where none has one.
    pub fn since_best(&self) -> usize {
        let name = self.watched([]);
        let all = self.records.0.iter().filter_map(|r| Some((r.epoch, finite(r, name)?)));
        let best = all.reduce(|best, next| if next.1 < best.1 { next } else { best });
        let last = self.records.0.last().map_or(0, |r| r.epoch);
        last - best.map_or(0, |best| best.0)
    }

    /// Which loss tells the best epoch: that of validation, where there ever was any.
    fn watched<'a>(&'a self, more: impl IntoIterator<Item = &'a Record>) -> &'static str {
        let validated = self.records.0.iter().chain(more).any(|r| r.value("val_loss").is_some());
        if validated { "val_loss" } else { "loss" }
    }

    /// Records an epoch, in place of what was recorded of it and of later ones before training was taken back to it.
    pub fn record(&mut self, record: Record) -> Result<()> {
        self.records.0.retain(|r| r.epoch < record.epoch);
        self.events.add(record.epoch as i64, &record.values)?;
        self.records.0.push(record);
        self.write()
    }

    /// Each file is replaced whole: a kill or a full disk leaves the old one.
    fn write(&self) -> Result<()> {
        write_json(&self.folder.join(HISTORY), &self.records)?;
        io::replace(&self.folder.join("history.csv"), self.records.csv().as_bytes())?;
        let name = self.folder.file_name().unwrap_or_default().to_string_lossy().to_string();
        io::replace(&self.folder.join("history.svg"), plot(&[(name, self.records.clone())])?.as_bytes())
    }
}

impl Callback for Run {
    fn on_epoch_end(&mut self, training: &mut Training<'_>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        let record = Record { epoch: epoch.epoch, values: epoch.values() };
        if self.checkpoints {
            training.save(&self.checkpoint("last")?)?;
            if self.is_best(&record) {
                training.save(&self.checkpoint("best")?)?;
            }
        }
        self.record(record)?;
        Ok(ControlFlow::Continue(()))
    }
}

/// A value that is a number.
fn finite(record: &Record, name: &str) -> Option<f64> {
    record.value(name).filter(|value| value.is_finite())
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(format!("{}: {e}", path.display())))?;
    io::replace(path, format!("{text}\n").as_bytes())
}

/// What results may depend on besides the configuration.
fn environment(device: &Device) -> Value {
    let began = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    json!({
        "mnemon": env!("CARGO_PKG_VERSION"),
        "device": device.name(),
        "kernels": device.kernels(),
        "os": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "processors": std::thread::available_parallelism().map_or(1, usize::from),
        "began": began,
        "command": std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<String>>(),
    })
}
