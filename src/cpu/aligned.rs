//! Floats that begin at a cache line, so that no register that is read or written lies in two.

use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};

/// Floats of a cache line, and of the widest register.
pub(super) const LINE: usize = 16;

/// A number of floats, the first at the beginning of a cache line; those of a file are where the file has them.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    data: Data,
    start: usize,
    len: usize,
}

#[derive(Debug)]
enum Data {
    Memory(Vec<f32>),
    File(MmapMut),
}

impl Default for Data {
    fn default() -> Self {
        Self::Memory(Vec::new())
    }
}

impl Aligned {
    /// So many zeros. Those of an allocator that knows them cost nothing before they are touched.
    pub fn zeros(len: usize) -> Self {
        let data = vec![0.0; len + LINE];
        let start = data.as_ptr().align_offset(LINE * size_of::<f32>());
        // Where the offset is not to be had, as in an interpreter, nothing is lost but speed.
        Self { data: Data::Memory(data), start: if start <= LINE { start } else { 0 }, len }
    }

    /// The floats that are mapped; none where they do not begin at one.
    pub fn mapped(map: MmapMut) -> Option<Self> {
        let len = bytemuck::try_cast_slice::<u8, f32>(&map).ok()?.len();
        Some(Self { data: Data::File(map), start: 0, len })
    }
}

impl Deref for Aligned {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        let all: &[f32] = match &self.data {
            Data::Memory(data) => data,
            Data::File(map) => bytemuck::cast_slice(map),
        };
        &all[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        let all: &mut [f32] = match &mut self.data {
            Data::Memory(data) => data,
            Data::File(map) => bytemuck::cast_slice_mut(map),
        };
        &mut all[self.start..self.start + self.len]
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
