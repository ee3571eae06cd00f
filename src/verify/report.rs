//! How far off each tensor is, and what that says of a case.

use crate::error::Result;
use serde::Serialize;

/// The largest value allowed where zeros are expected.
pub const ZERO_TOLERANCE: f64 = 1e-6;

/// The error of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorError {
    /// Its name, for example `grad.weight_ih_l0`.
    pub name: String,
    /// ‖a − b‖ / ‖b‖, or max |a| where ‖b‖ is zero; infinite where a value is not finite or the lengths differ.
    pub error: f64,
    /// The largest error allowed.
    pub tolerance: f64,
}

impl TensorError {
    /// The error of `actual` where `expected` is right.
    pub fn of(name: String, actual: &[f64], expected: &[f64], tolerance: f64) -> Self {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let scale = norm(&mut expected.iter().copied());
        let finite = actual.iter().chain(expected).all(|v| v.is_finite());
        let (error, tolerance) = if actual.len() != expected.len() || !finite {
            (f64::INFINITY, tolerance)
        } else if scale == 0.0 {
            (actual.iter().fold(0.0, |largest: f64, v| largest.max(v.abs())), ZERO_TOLERANCE)
        } else {
            (norm(&mut actual.iter().zip(expected).map(|(a, b)| a - b)) / scale, tolerance)
        };
        Self { name, error, tolerance }
    }

    /// Whether the error is allowed; an error that is not a number never is.
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }

    fn excess(&self) -> f64 {
        let excess = self.error / self.tolerance;
        if excess.is_nan() { f64::from(u8::from(!self.passed())) } else { excess }
    }
}

/// What became of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Every tensor is within its tolerance.
    Passed,
    /// At least one tensor is not.
    Failed,
    /// It could not be run.
    Unsupported,
}

/// One case on one device; as JSON, one line of `mnemon verify --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The case's name.
    pub case: String,
    /// `cpu`, `reference`, `gpu` or `software`.
    pub device: String,
    /// The device's full name.
    pub adapter: String,
    /// Whether every tensor is within its tolerance.
    pub passed: bool,
    /// What became of it.
    pub status: Status,
    /// The tensor with the largest error over its tolerance.
    pub worst_tensor: Option<String>,
    /// Its error; `null` in JSON where it is not finite.
    pub worst_error: Option<f64>,
    /// Its tolerance.
    pub tolerance: Option<f64>,
    /// Why it could not be run, or what failed.
    pub error: Option<String>,
    /// Every tensor's error.
    #[serde(skip)]
    pub tensors: Vec<TensorError>,
}

impl Report {
    /// What the errors of a case, or that it could not be run, say of it.
    pub fn new(case: &str, device: &str, adapter: &str, outcome: Result<Vec<TensorError>>) -> Self {
        let mut report = Self {
            case: case.to_string(),
            device: device.to_string(),
            adapter: adapter.to_string(),
            passed: false,
            status: Status::Unsupported,
            worst_tensor: None,
            worst_error: None,
            tolerance: None,
            error: None,
            tensors: Vec::new(),
        };
        match outcome {
            Err(error) => report.error = Some(error.to_string()),
            Ok(tensors) => report.fill(tensors),
        }
        report
    }

    fn fill(&mut self, tensors: Vec<TensorError>) {
        let failed: Vec<&str> = tensors.iter().filter(|t| !t.passed()).map(|t| t.name.as_str()).collect();
        self.passed = failed.is_empty() && !tensors.is_empty();
        self.status = if self.passed { Status::Passed } else { Status::Failed };
        self.error = (!self.passed).then(|| format!("beyond tolerance or not finite: {}", failed.join(", ")));
        if let Some(worst) = tensors.iter().max_by(|a, b| a.excess().total_cmp(&b.excess())) {
            self.worst_tensor = Some(worst.name.clone());
            self.worst_error = Some(worst.error).filter(|e| e.is_finite());
            self.tolerance = Some(worst.tolerance);
        }
        self.tensors = tensors;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn error(actual: &[f64], expected: &[f64]) -> TensorError {
        TensorError::of("out.y".to_string(), actual, expected, 1e-5)
    }

    #[test]
    fn equal_data_passes_and_small_errors_are_relative_to_the_norm() {
        assert!(error(&[1.0, 2.0], &[1.0, 2.0]).passed());
        assert!((error(&[3.0, 4.5], &[3.0, 4.0]).error - 0.1).abs() < 1e-12);
        assert!(error(&[1e-7, 0.0], &[0.0, 0.0]).passed());
    }

    #[test]
    fn perturbed_swapped_nan_and_wrong_length_data_fail() {
        let right = [1.0, 2.0, -3.0];
        let wrong: [&[f64]; 8] = [
            &[1.0, 2.0, -3.0001],
            &[2.0, 1.0, -3.0],
            &[1.0, f64::NAN, -3.0],
            &[1.0, f64::INFINITY, -3.0],
            &[1.0, 2.0],
            &[1.0, 2.0, -3.0, 0.0],
            &[],
            &[0.0, 0.0, 0.0],
        ];
        for actual in wrong {
            assert!(!error(actual, &right).passed(), "{actual:?}");
        }
        assert!(!error(&right, &[1.0, f64::NAN, -3.0]).passed());
        assert!(!error(&[1e-5, 0.0], &[0.0, 0.0]).passed());
        assert!(!error(&[f64::NAN], &[0.0]).passed());
    }

    #[test]
    fn the_worst_tensor_is_the_one_with_the_largest_error_over_its_tolerance() {
        let tensor = |name: &str, error, tolerance| TensorError { name: name.to_string(), error, tolerance };
        let all = vec![tensor("a", 9e-6, 1e-5), tensor("b", 2e-5, 1e-4)];
        let report = Report::new("case", "cpu", "cpu", Ok(all));
        assert_eq!((report.passed, report.worst_tensor.as_deref()), (true, Some("a")));
        let all = vec![tensor("a", 1.0, 1e-5), tensor("b", f64::INFINITY, 1e-4), tensor("c", 0.0, 1e-4)];
        let report = Report::new("case", "cpu", "cpu", Ok(all));
        assert_eq!((report.status, report.worst_tensor.as_deref()), (Status::Failed, Some("b")));
        assert!(serde_json::to_string(&report).unwrap().contains(r#""worst_error":null,"tolerance":0.0001"#));
    }

    #[test]
    fn no_tensor_is_no_pass_and_an_error_is_unsupported() {
        assert_eq!(Report::new("case", "cpu", "cpu", Ok(Vec::new())).status, Status::Failed);
        let report = Report::new("case", "cpu", "cpu", Err(Error::unsupported("lstm: projection")));
        assert_eq!((report.status, report.error.as_deref()), (Status::Unsupported, Some("lstm: projection")));
    }
}
