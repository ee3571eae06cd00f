//! Series of numbers: windows over them, scaling, and a classic to try things on.

use crate::error::{Error, Result};
use ndarray::{Array2, Array3};

/// Monthly totals of international airline passengers in thousands, January 1949 to December 1960.
///
/// Box, Jenkins, "Time Series Analysis: Forecasting and Control" (1976), series G.
#[rustfmt::skip]
pub const AIR_PASSENGERS: [f32; 144] = [
    112., 118., 132., 129., 121., 135., 148., 148., 136., 119., 104., 118.,
    115., 126., 141., 135., 125., 149., 170., 170., 158., 133., 114., 140.,
    145., 150., 178., 163., 172., 178., 199., 199., 184., 162., 146., 166.,
    171., 180., 193., 181., 183., 218., 230., 242., 209., 191., 172., 194.,
    196., 196., 236., 235., 229., 243., 264., 272., 237., 211., 180., 201.,
    204., 188., 235., 227., 234., 264., 302., 293., 259., 229., 203., 229.,
    242., 233., 267., 269., 270., 315., 364., 347., 312., 274., 237., 278.,
    284., 277., 317., 313., 318., 374., 413., 405., 355., 306., 271., 306.,
    315., 301., 356., 348., 355., 422., 465., 467., 404., 347., 305., 336.,
    340., 318., 362., 348., 363., 435., 491., 505., 404., 359., 310., 337.,
    360., 342., 406., 396., 420., 472., 548., 559., 463., 407., 362., 405.,
    417., 391., 419., 461., 472., 535., 622., 606., 508., 461., 390., 432.,
];

/// Every window of `steps` values, x `[samples, steps, 1]`, with the `horizon` values after it, y `[samples, horizon]`.
pub fn windows(series: &[f32], steps: usize, horizon: usize) -> Result<(Array3<f32>, Array2<f32>)> {
    if steps == 0 || horizon == 0 || steps.saturating_add(horizon) > series.len() {
        return Err(Error::data(format!(
            "windows: expected at least {steps} + {horizon} values and neither 0, got {}",
            series.len()
        )));
    }
    let samples = series.len() - steps - horizon + 1;
    let x = Array3::from_shape_fn((samples, steps, 1), |(s, t, _)| series[s + t]);
    let y = Array2::from_shape_fn((samples, horizon), |(s, t)| series[s + steps + t]);
    Ok((x, y))
}

/// Maps a range to [0, 1] and back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaler {
    low: f32,
    high: f32,
}

impl Scaler {
    /// The scaler of the smallest and largest of `values`.
    pub fn fit(values: &[f32]) -> Result<Self> {
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::data(format!("scaler: expected finite values, got {} at position {at}", values[at])));
        }
        let low = values.iter().copied().fold(f32::INFINITY, f32::min);
        let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if low >= high {
            return Err(Error::data("scaler: expected at least two different values"));
        }
        Ok(Self { low, high })
    }

    /// `value` in the range's units.
    pub fn scale(&self, value: f32) -> f32 {
        (value - self.low) / (self.high - self.low)
    }

    /// The inverse of [`Self::scale`].
    pub fn restore(&self, value: f32) -> f32 {
        value * (self.high - self.low) + self.low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_slide_by_one_and_their_targets_follow() {
        let (x, y) = windows(&[0.0, 1.0, 2.0, 3.0, 4.0], 2, 2).unwrap();
        assert_eq!((x.shape(), y.shape()), (&[2, 2, 1][..], &[2, 2][..]));
        assert_eq!(
            (x.as_slice().unwrap(), y.as_slice().unwrap()),
            (&[0.0, 1.0, 1.0, 2.0][..], &[2.0, 3.0, 3.0, 4.0][..])
        );
        assert!(windows(&[0.0, 1.0], 2, 1).is_err() && windows(&[0.0], 0, 1).is_err());
    }

    #[test]
    fn scaling_is_undone() {
        let scaler = Scaler::fit(&AIR_PASSENGERS).unwrap();
        assert_eq!([scaler.scale(104.0), scaler.scale(622.0)], [0.0, 1.0]);
        assert!((scaler.restore(scaler.scale(300.0)) - 300.0).abs() < 1e-3);
        assert!(
            Scaler::fit(&[1.0, 1.0]).is_err() && Scaler::fit(&[1.0, f32::NAN]).is_err() && Scaler::fit(&[]).is_err()
        );
    }
}
