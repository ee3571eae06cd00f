//! Where values live on the host: arenas of a program, and persistent values by name.

use super::aligned::Aligned;
use crate::error::{Error, Result};
use crate::params::mapping::{self, Mapping};
use crate::params::{DType, Tensor};
use crate::scheduler::footprint::{Claim, Meter};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// A value that outlives runs. Unsigned values are kept as the floats of their bits.
#[derive(Debug)]
pub(super) struct Persistent {
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) data: Aligned,
    /// Of what is in memory, not in a file.
    pub(super) _claim: Option<Claim>,
    /// The file of which what is read is not in memory.
    pub(super) file: Option<Arc<Mapping>>,
    /// Differs after every change, so that what was made from older contents is known to be stale.
    pub(super) version: u64,
}

/// Zeros for `name`, counted while the claim is kept: the one place where the executor allocates what a plan counts.
pub(super) fn allocate(meter: &Meter, name: &str, len: usize) -> Result<(Aligned, Claim)> {
    let bytes = (len as u64).saturating_mul(size_of::<f32>() as u64);
    let refused = |why: &str| Error::memory(format!("cpu: {bytes} bytes for `{name}` were refused: {why}"));
    let claim = meter.claim(bytes).ok_or_else(|| refused("beyond the limit"))?;
    Vec::<f32>::new().try_reserve_exact(len).map_err(|_| refused("the host has no more"))?;
    Ok((Aligned::zeros(len), claim))
}

/// Zeros in a file: what is not used for a while is not in memory, and is not counted.
pub(super) fn in_a_file(len: usize) -> Result<Aligned> {
    Aligned::mapped(mapping::scratch(len)?).ok_or_else(|| Error::internal("cpu: a file of floats is no file of floats"))
}

/// The values of a tensor where its file has them, with that file, or in a file of their own where it has none or they `change`:
/// then even a copy of what changes would be in memory.
pub(super) fn wait(tensor: &Tensor, change: bool) -> Result<(Aligned, Option<Arc<Mapping>>)> {
    if let Some((file, first)) = tensor.file().filter(|_| !change)
        && let Some(data) = Aligned::mapped(file.copy(first, tensor.len())?)
    {
        return Ok((data, Some(Arc::clone(file))));
    }
    let mut data = in_a_file(tensor.len())?;
    store(tensor, 0, &mut data)?;
    Ok((data, None))
}

/// A piece of memory that is borrowed as a whole, either to read or to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Buffer {
    /// An arena of a program.
    Arena(usize),
    /// A persistent value.
    Persistent(usize),
    /// A tensor that the run was given, read where it is.
    Input(usize),
}

/// A range of a buffer, in values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) buffer: Buffer,
    pub(super) offset: usize,
    pub(super) len: usize,
}

/// All memory of a run.
#[derive(Debug)]
pub(super) struct Memory<'a> {
    pub(super) inputs: &'a [&'a Tensor],
    pub(super) arenas: &'a mut [Aligned],
    pub(super) persistents: &'a mut [Persistent],
}

impl Memory<'_> {
    fn buffer(&self, buffer: Buffer) -> Result<&[f32]> {
        Ok(match buffer {
            Buffer::Arena(a) => &self.arenas[a],
            Buffer::Persistent(p) => &self.persistents[p].data,
            Buffer::Input(i) => match self.inputs[i].dtype() {
                DType::F32 => self.inputs[i].f32s()?,
                DType::U32 => bytemuck::cast_slice(self.inputs[i].u32s()?),
            },
        })
    }

    fn buffer_mut(&mut self, buffer: Buffer) -> Result<&mut Aligned> {
        match buffer {
            Buffer::Arena(a) => Ok(&mut self.arenas[a]),
            Buffer::Persistent(p) => Ok(&mut self.persistents[p].data),
            Buffer::Input(_) => Err(Error::internal("cpu: an input would be written")),
        }
    }

    /// The values at `place`.
    pub(super) fn read(&self, place: Place) -> Result<&[f32]> {
        let values = self.buffer(place.buffer)?.get(place.offset..place.offset + place.len);
        values.ok_or_else(|| Error::internal(format!("cpu: {place:?} does not exist")))
    }

    /// The values at `place`, to change.
    pub(super) fn write(&mut self, place: Place) -> Result<&mut [f32]> {
        let values = self.buffer_mut(place.buffer)?.get_mut(place.offset..place.offset + place.len);
        values.ok_or_else(|| Error::internal(format!("cpu: {place:?} does not exist")))
    }

    /// Takes the buffers of `places` out, so that they can be written while others are read.
    pub(super) fn take(&mut self, places: &[Option<Place>]) -> Result<BTreeMap<Buffer, Aligned>> {
        let mut taken = BTreeMap::new();
        for place in places.iter().flatten() {
            if let Entry::Vacant(entry) = taken.entry(place.buffer) {
                entry.insert(std::mem::take(self.buffer_mut(place.buffer)?));
            }
        }
        Ok(taken)
    }

    /// Gives taken buffers back.
    pub(super) fn put(&mut self, taken: BTreeMap<Buffer, Aligned>) {
        for (buffer, data) in taken {
            // What was taken is no input.
            if let Ok(place) = self.buffer_mut(buffer) {
                *place = data;
            }
        }
    }
}

/// The disjoint slices of taken buffers at `places`, by position.
pub(super) fn carve<'a>(
    taken: &'a mut BTreeMap<Buffer, Aligned>,
    places: &[Option<Place>],
) -> Result<Vec<Option<&'a mut [f32]>>> {
    let mut slices: Vec<Option<&'a mut [f32]>> = places.iter().map(|_| None).collect();
    for (&buffer, data) in taken.iter_mut() {
        let mut here: Vec<(usize, Place)> =
            places.iter().enumerate().filter_map(|(i, p)| Some((i, (*p)?))).filter(|p| p.1.buffer == buffer).collect();
        here.sort_by_key(|p| (p.1.offset, p.1.len));
        let (mut rest, mut at) = (&mut data[..], 0);
        for (position, place) in here {
            let skip = place.offset.checked_sub(at).filter(|skip| skip + place.len <= rest.len());
            let skip =
                skip.ok_or_else(|| Error::internal(format!("cpu: {place:?} overlaps another or is too long")))?;
            let (slice, tail) = std::mem::take(&mut rest)[skip..].split_at_mut(place.len);
            (rest, at) = (tail, place.offset + place.len);
            slices[position] = Some(slice);
        }
    }
    Ok(slices)
}

/// Copies the values of `tensor` from number `first` on to the front of `to`.
pub(super) fn store(tensor: &Tensor, first: usize, to: &mut [f32]) -> Result<()> {
    match tensor.dtype() {
        DType::F32 => to.iter_mut().zip(tensor.f32s()?.iter().skip(first)).for_each(|(to, &x)| *to = x),
        DType::U32 => to.iter_mut().zip(tensor.u32s()?.iter().skip(first)).for_each(|(to, &x)| *to = f32::from_bits(x)),
    }
    Ok(())
}

/// A tensor of the first values of `from`.
pub(super) fn load(from: &[f32], shape: &[usize], dtype: DType) -> Result<Tensor> {
    let values = &from[..shape.iter().product()];
    match dtype {
        DType::F32 => Tensor::new(shape, values.to_vec()),
        DType::U32 => Tensor::from_u32(shape, values.iter().map(|x| x.to_bits()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_carved_by_position_and_overlaps_are_refused() {
        let buffer = Buffer::Arena(0);
        let place = |offset, len| Some(Place { buffer, offset, len });
        let mut taken = BTreeMap::from([(buffer, Aligned::zeros(10))]);
        taken.values_mut().flat_map(|values| values.iter_mut().enumerate()).for_each(|(i, x)| *x = i as f32);
        let slices = carve(&mut taken, &[place(6, 2), None, place(1, 3)]).unwrap();
        assert_eq!(slices[0].as_deref(), Some(&[6.0, 7.0][..]));
        assert_eq!(slices[2].as_deref(), Some(&[1.0, 2.0, 3.0][..]));
        assert!(slices[1].is_none());
        assert!(carve(&mut taken, &[place(0, 4), place(3, 2)]).is_err());
        assert!(carve(&mut taken, &[place(8, 3)]).is_err());
    }
}
