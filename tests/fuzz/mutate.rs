//! Changes to files: to their bytes, and to what is inside of them, packed again so that a reader comes that far.

use super::{json, wire};
use std::io::{Cursor, Read, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// How what a file holds is packed.
#[derive(Clone, Copy)]
pub enum Form {
    /// In HDF5, whose texts may be JSON.
    Hdf5,
    /// As members of a zip archive.
    Zip,
    /// Behind a header in JSON whose length comes first.
    Safetensors,
    /// As messages in each other.
    Onnx,
}

/// Numbers by xorshift*, the same from the same seed.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        let mut rng = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d | 1);
        rng.next();
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Sizes at which something changes.
pub const SIZES: [u64; 20] = [
    0,
    1,
    2,
    3,
    7,
    16,
    127,
    128,
    255,
    256,
    32767,
    65535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX,
];

const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "2",
    "1e400",
    "-0.0",
    "1e-9",
    "256",
    "65536",
    "4294967296",
    "9223372036854775807",
    "18446744073709551616",
    "99999999",
    "null",
];

/// A file made of those of `corpus`, and how long it is unpacked.
pub fn mutated(form: Form, corpus: &[Vec<u8>], rng: &mut Rng) -> (Vec<u8>, usize) {
    let source = rng.pick(corpus);
    let (other, inside) = (rng.pick(corpus), !rng.one_in(4));
    let bytes = match form {
        Form::Zip => return zip(source, corpus, rng),
        Form::Safetensors if inside => safetensors(source, rng),
        Form::Hdf5 if rng.one_in(3) => {
            let mut bytes = source.clone();
            json::mutated_inside(&mut bytes, rng);
            bytes
        }
        Form::Onnx if inside => wire::mutated(source, other, rng),
        _ => {
            let mut bytes = source.clone();
            havoc(&mut bytes, rng);
            bytes
        }
    };
    let len = bytes.len();
    (bytes, len)
}

/// A few changes to bytes.
pub fn havoc(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..1 + rng.below(6) {
        if bytes.is_empty() {
            bytes.push(rng.next() as u8);
        }
        let at = rng.below(bytes.len());
        let most = if rng.one_in(8) { 4096 } else { 16 };
        let len = 1 + rng.below(most);
        let end = (at + len).min(bytes.len());
        match rng.below(12) {
            0 | 1 => bytes[at] ^= 1 << rng.below(8),
            2 => bytes[at] = rng.next() as u8,
            3 => bytes[at] = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff][..]),
            4 | 5 => {
                let word = rng.pick(&SIZES[..]).to_le_bytes();
                let width = (1usize << rng.below(4)).min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&word[..width]);
            }
            6 => {
                let by = rng.below(17) as u8;
                bytes[at] = bytes[at].wrapping_add(by).wrapping_sub(8);
            }
            7 => drop(bytes.drain(at..end)),
            8 => {
                let again = bytes[at..end].to_vec();
                let to = rng.below(bytes.len() + 1);
                bytes.splice(to..to, again);
            }
            9 => {
                let to = rng.below(bytes.len());
                let len = (end - at).min(bytes.len() - to);
                bytes.copy_within(at..at + len, to);
            }
            10 if rng.one_in(4) => bytes.truncate(at),
            _ => number(bytes, at, rng),
        }
    }
}

/// Another number in place of the next one that is written out.
fn number(bytes: &mut Vec<u8>, from: usize, rng: &mut Rng) {
    let digit = |b: &u8| b.is_ascii_digit() || b"-.".contains(b);
    let Some(start) = bytes[from..].iter().position(digit).map(|n| from + n) else { return };
    let end = bytes[start..].iter().position(|b| !digit(b)).map_or(bytes.len(), |n| start + n);
    bytes.splice(start..end, rng.pick(&NUMBERS[..]).bytes());
}

/// The members of an archive.
fn members(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).unwrap();
    let mut all = Vec::new();
    for at in 0..archive.len() {
        let mut member = archive.by_index(at).unwrap();
        let (name, mut bytes) = (member.name().to_string(), Vec::new());
        member.read_to_end(&mut bytes).unwrap();
        all.push((name, bytes));
    }
    all
}

/// One of them.
pub fn member(bytes: &[u8], name: &str) -> Vec<u8> {
    members(bytes).into_iter().find(|m| m.0 == name).unwrap().1
}

fn zip(source: &[u8], corpus: &[Vec<u8>], rng: &mut Rng) -> (Vec<u8>, usize) {
    if rng.one_in(6) {
        let mut bytes = source.to_vec();
        havoc(&mut bytes, rng);
        let unpacked = members(source).iter().map(|m| m.1.len()).sum();
        return (bytes, unpacked);
    }
    let mut all = members(source);
    for _ in 0..1 + rng.below(2) {
        let at = rng.below(all.len());
        match rng.below(24) {
            0 if all.len() > 1 => drop(all.remove(at)),
            1 => {
                let other = rng.pick(corpus);
                let other = members(other);
                all[at].1 = rng.pick(&other).1.clone();
            }
            2 => all[at].0.push('x'),
            _ => {
                let member = &mut all[at].1;
                let changed = if rng.one_in(4) { None } else { json::mutated(member, rng) };
                match changed {
                    Some(changed) => *member = changed,
                    None => havoc(member, rng),
                }
            }
        }
    }
    let unpacked = all.iter().map(|m| m.1.len()).sum();
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let method = if rng.one_in(4) { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    for (name, bytes) in &all {
        if writer.start_file(name.as_str(), SimpleFileOptions::default().compression_method(method)).is_ok() {
            writer.write_all(bytes).unwrap();
        }
    }
    (writer.finish().unwrap().into_inner(), unpacked)
}

fn safetensors(source: &[u8], rng: &mut Rng) -> Vec<u8> {
    let (length, rest) = source.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let (mut header, mut data) = (rest[..length].to_vec(), rest[length..].to_vec());
    match json::mutated(&header, rng) {
        Some(changed) if !rng.one_in(4) => header = changed,
        _ => havoc(&mut header, rng),
    }
    if rng.one_in(8) {
        havoc(&mut data, rng);
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    bytes
}
