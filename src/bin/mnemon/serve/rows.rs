//! Steps in bodies and messages: JSON, or 32-bit little-endian values.

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use mnemon::params::Tensor;
use serde::{Deserialize, Serialize};

use super::routes::Refusal;

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Binary,
}

pub const BINARY: &str = "application/octet-stream";

impl Format {
    /// What the headers of a request say of its body.
    pub fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
        match kind.split(';').next().unwrap_or_default().trim() {
            "application/json" => Ok(Self::Json),
            BINARY => Ok(Self::Binary),
            other => Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("expected application/json or {BINARY}, got {other}"),
            )),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given<X> {
    x: X,
}

#[derive(Serialize)]
struct Answer<'a> {
    y: Vec<&'a [f32]>,
}

/// The steps of a body: floats `[steps, features]`, or integers where there is no number of features.
pub fn read(bytes: &Bytes, format: Format, features: Option<usize>) -> Result<Tensor, Refusal> {
    let bad = |e: String| Refusal::new(StatusCode::BAD_REQUEST, e);
    let json = |e: serde_json::Error| bad(format!("the body: {e}"));
    let words = || {
        let (words, rest) = bytes.as_chunks::<4>();
        let width = features.unwrap_or(1);
        if !rest.is_empty() || words.len() % width != 0 {
            let row = 4 * width;
            return Err(bad(format!("the body: expected steps of {row} bytes, got {} bytes", bytes.len())));
        }
        Ok(words)
    };
    let tensor = match (format, features) {
        (Format::Json, Some(features)) => {
            let Given { x } = serde_json::from_slice::<Given<Vec<Vec<f32>>>>(bytes).map_err(json)?;
            if let Some((at, row)) = x.iter().enumerate().find(|(_, row)| row.len() != features) {
                return Err(bad(format!("x: expected steps of {features} values, step {at} has {}", row.len())));
            }
            Tensor::new(&[x.len(), features], x.concat())
        }
        (Format::Json, None) => {
            let Given { x } = serde_json::from_slice::<Given<Vec<u32>>>(bytes).map_err(json)?;
            Tensor::from_u32(&[x.len()], x)
        }
        (Format::Binary, Some(features)) => {
            let words = words()?;
            let values = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
            Tensor::new(&[words.len() / features, features], values)
        }
        (Format::Binary, None) => {
            let words = words()?;
            Tensor::from_u32(&[words.len()], words.iter().map(|word| u32::from_le_bytes(*word)).collect())
        }
    };
    let tensor = tensor.map_err(Refusal::from)?;
    match tensor.f32s().ok().and_then(|x| x.iter().position(|v| !v.is_finite())) {
        Some(at) => Err(bad(format!("x: value {at} is not a finite number"))),
        None => Ok(tensor),
    }
}

/// The outputs `[steps, features]`, each of which is finite, as a body.
pub fn write(y: &Tensor, format: Format) -> Result<Vec<u8>, Refusal> {
    let values = y.f32s()?;
    match format {
        Format::Binary => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Format::Json => {
            if values.iter().any(|v| !v.is_finite()) {
                let why = "the model gives numbers that are not finite, which JSON cannot say";
                return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why.to_string()));
            }
            let answer = Answer { y: values.chunks_exact(y.shape()[1].max(1)).collect() };
            let failed = |e: serde_json::Error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string());
            serde_json::to_vec(&answer).map_err(failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_and_written_and_bad_ones_refused() {
        let body = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let x = read(&body(r#"{"x": [[1, -0.5], [2e-3, 0]]}"#), Format::Json, Some(2)).unwrap();
        assert_eq!((x.shape(), x.f32s().unwrap()), (&[2, 2][..], &[1.0, -0.5, 2e-3, 0.0][..]));
        let written = write(&x, Format::Binary).unwrap();
        assert_eq!(read(&written.into(), Format::Binary, Some(2)).unwrap(), x);
        assert_eq!(write(&x, Format::Json).unwrap(), br#"{"y":[[1.0,-0.5],[0.002,0.0]]}"#);
        let tokens = read(&body(r#"{"x": [3, 7]}"#), Format::Json, None).unwrap();
        assert_eq!(tokens, Tensor::from_u32(&[2], vec![3, 7]).unwrap());
        assert_eq!(read(&body("\x03\0\0\0\x07\0\0\0"), Format::Binary, None).unwrap(), tokens);
        assert_eq!(read(&body(r#"{"x": []}"#), Format::Json, Some(2)).unwrap().shape(), [0, 2]);
        for (text, format, features) in [
            (r#"{"x": [[1, 2, 3]]}"#, Format::Json, Some(2)),
            (r#"{"x": [[1, 2]], "y": 3}"#, Format::Json, Some(2)),
            (r#"{"x": [[1, null]]}"#, Format::Json, Some(2)),
            (r#"{"x": [[1, 1e99]]}"#, Format::Json, Some(2)),
            (r#"{"x": [[1, 2]"#, Format::Json, Some(2)),
            (r#"{"x": [-1]}"#, Format::Json, None),
            ("123456789012", Format::Binary, Some(2)),
            ("\0\0\u{7f}\u{7f}\0\0\u{7f}", Format::Binary, None),
        ] {
            assert!(read(&body(text), format, features).is_err(), "{text}");
        }
        let infinite = f32::INFINITY.to_le_bytes().to_vec();
        assert!(read(&infinite.into(), Format::Binary, Some(1)).is_err());
    }
}
