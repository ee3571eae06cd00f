//! Event files as TensorBoard reads them: records of a length, its checksum, a protocol buffer and its checksum.

use crate::error::{Error, Result};
use prost::Message;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// TensorFlow's `event.proto`, as far as scalars need it.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// Writes scalars to a new event file.
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

impl EventWriter {
    /// A new file in `folder`.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(format!("events.out.tfevents.{:.6}.{}.mnemon", now(), std::process::id()));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let mut writer = Self { file: file.map_err(|e| Error::io(&path, "make", e))?, path };
        let version = Some("brain.Event:2".to_string());
        writer.write(&Event { wall_time: now(), step: 0, file_version: version, summary: None })?;
        Ok(writer)
    }

    /// Adds values at a step. Those of validation, which begin with `val_`, are called `validation/NAME`, others `train/NAME`.
    pub fn add(&mut self, step: i64, values: &[(String, f64)]) -> Result<()> {
        let tag = |name: &str| match name.strip_prefix("val_") {
            Some(name) => format!("validation/{name}"),
            None => format!("train/{name}"),
        };
        let value = values.iter().map(|(name, value)| Scalar { tag: tag(name), simple_value: *value as f32 }).collect();
        self.write(&Event { wall_time: now(), step, file_version: None, summary: Some(Summary { value }) })
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(&data);
        record.extend(masked(&data).to_le_bytes());
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// The checksum of a record: CRC-32C, turned and moved so that data that holds checksums has none of its own.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_as_tensorflow_frames_them() {
        // The first record of every event file that TensorFlow writes but for its time, which is 0 here.
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        writer.add(3, &[("val_loss".to_string(), 0.5)]).unwrap();
        let bytes = std::fs::read(&writer.path).unwrap();
        let (mut at, mut events) = (0, Vec::new());
        while at < bytes.len() {
            let length = &bytes[at..at + 8];
            let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            assert_eq!(bytes[at + 8..at + 12], masked(length).to_le_bytes());
            let data = &bytes[at + 12..at + 12 + n];
            assert_eq!(bytes[at + 12 + n..at + 16 + n], masked(data).to_le_bytes());
            events.push(Event::decode(data).unwrap());
            at += 16 + n;
        }
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        let scalar = Scalar { tag: "validation/loss".to_string(), simple_value: 0.5 };
        assert_eq!((events[1].step, events[1].summary.clone()), (3, Some(Summary { value: vec![scalar] })));
        // CRC-32C of "123456789" is 0xe3069283 (RFC 3720).
        assert_eq!(masked(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
