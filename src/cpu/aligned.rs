//! Floats that begin at a cache line, so that no register that is read or written lies in two.

use std::ops::{Deref, DerefMut};

/// Floats of a cache line, and of the widest register.
pub(super) const LINE: usize = 16;

/// A number of floats, the first at the beginning of a cache line.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    data: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// So many zeros. Those of an allocator that knows them cost nothing before they are touched.
    pub fn zeros(len: usize) -> Self {
        let data = vec![0.0; len + LINE];
        let start = data.as_ptr().align_offset(LINE * size_of::<f32>());
        // Where the offset is not to be had, as in an interpreter, nothing is lost but speed.
        Self { data, start: if start <= LINE { start } else { 0 }, len }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.data[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_begin_at_a_cache_line_wherever_they_are_moved() {
        for len in [0, 1, 15, 16, 1000] {
            let mut values = Box::new(Aligned::zeros(len));
            values.iter_mut().for_each(|x| *x += 1.0);
            assert_eq!((values.len(), values.iter().sum::<f32>()), (len, len as f32));
            let moved = *values;
            assert!(cfg!(miri) || moved.as_ptr().addr().is_multiple_of(64));
        }
    }
}
