//! Where a program's values are on a GPU, and what launchers see when they are made ready and when they record.

use super::adapter::Context;
use super::buffer::{Buffer, VECTOR};
use super::pipeline::{Binding, Constants, Kernel, Pipelines};
use super::record::{Launch, View};
use crate::error::{Error, Result};
use crate::graph::{Dim, Shape};
use crate::scheduler::stage::Part;
use crate::scheduler::strategy::row_axis;
use crate::scheduler::table::Layout;
use crate::scheduler::{Axis, Batch, Program, Side};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Where the values of a program are.
pub(super) struct Values {
    pub program: Arc<Program>,
    pub(super) arenas: Vec<Buffer>,
    pub(super) persistent: BTreeMap<usize, View>,
    pub(super) axis_rows: BTreeMap<u8, usize>,
}

impl Values {
    pub fn shape(&self, value: usize) -> &Shape {
        &self.program.values[value].shape
    }

    /// The number that dimension `at` of `value` is; kernels ask only for those that shape rules have made numbers.
    pub fn fixed(&self, value: usize, at: usize) -> Result<usize> {
        match self.shape(value).0.get(at) {
            Some(Dim::Fixed(n)) => Ok(*n),
            _ => Err(Error::internal(format!("`{}` has no fixed size {at}", self.program.values[value].name))),
        }
    }

    /// Values in one row of `value`.
    pub fn row_len(&self, value: usize) -> Result<usize> {
        let len = self.shape(value).row_len();
        len.ok_or_else(|| Error::internal(format!("`{}` has no fixed row", self.program.values[value].name)))
    }

    /// Rows of a piece of every value on the axis.
    pub fn piece_rows(&self, axis: Option<u8>) -> usize {
        axis.and_then(|a| self.axis_rows.get(&a).copied()).unwrap_or(usize::MAX)
    }

    /// How many pieces the values on the axis have.
    pub fn pieces(&self, axis: Option<u8>) -> usize {
        let rows = axis.and_then(|a| self.program.capacity.axes.get(a as usize)).map_or(1, |a| a.1.max(1));
        rows.div_ceil(self.piece_rows(axis))
    }

    /// The part of `value` that `piece` holds.
    pub fn view(&self, value: usize, piece: usize) -> Result<View> {
        let root = self.program.root(value);
        if let Some(whole) = self.persistent.get(&root) {
            let axis = row_axis(self.shape(root));
            let rows = self.piece_rows(axis);
            if rows == usize::MAX {
                return Ok(whole.clone());
            }
            let piece_bytes = 4 * rows as u64 * self.row_len(root)? as u64;
            let offset = piece as u64 * piece_bytes;
            let bytes = piece_bytes.min(whole.bytes - offset);
            return Ok(View { offset: whole.offset + offset, bytes, ..whole.clone() });
        }
        let place = self.program.placement.places.get(&root);
        let place = place.ok_or_else(|| Error::internal(format!("value {root} has no place")))?;
        let (arena, offset) =
            *place.pieces.get(piece).ok_or_else(|| Error::internal(format!("value {root} has no piece {piece}")))?;
        Ok(View { buffer: self.arenas[arena].clone(), offset, bytes: place.piece_bytes })
    }

    /// One side of a move, of a value that is in one piece.
    pub fn side(&self, side: Side, part: &Part<'_>) -> Result<Vec<View>> {
        let Some(value) = side.value() else { return Ok(Vec::new()) };
        let view = self.view(value, 0)?;
        let row_bytes = 4 * self.row_len(value)? as u64;
        let rows: Vec<Range<usize>> = match side {
            Side::Part(_) => part.rows(self.shape(value))?,
            Side::Slot(_) => {
                let slot = part.slot as u64 * row_bytes;
                let bytes = 4 * (part.batch.sequences() * self.fixed(value, 2)?) as u64;
                return Ok(vec![View { offset: view.offset + slot, bytes, ..view }]);
            }
            _ => {
                let rows = self.shape(value).rows().map_or(Ok(1), |rows| part.batch.size(rows))?;
                vec![Range { start: 0, end: rows }]
            }
        };
        let views = rows.into_iter().map(|r| View {
            buffer: view.buffer.clone(),
            offset: view.offset + r.start as u64 * row_bytes,
            bytes: r.len() as u64 * row_bytes,
        });
        Ok(views.collect())
    }

    /// All of a value's pieces, cut to `rows` rows.
    pub fn rows_of(&self, value: usize, rows: usize) -> Result<Vec<View>> {
        let row_bytes = 4 * self.row_len(value)?.max(1) as u64;
        let piece = self.piece_rows(row_axis(self.shape(value)));
        (0..rows.div_ceil(piece.min(rows.max(1))))
            .map(|p| {
                let view = self.view(value, p)?;
                let here = (rows - p * piece.min(rows)).min(piece);
                Ok(View { bytes: (here as u64 * row_bytes).min(view.bytes), ..view })
            })
            .collect()
    }
}

/// What a launcher needs to make bind groups.
pub(super) struct Preparer<'a> {
    pub context: &'a Context,
    pub values: &'a Values,
    pub(super) pipelines: &'a mut Pipelines,
    pub(super) nothing: &'a [Buffer; 2],
    pub(super) stalls: &'a Buffer,
    pub(super) params: &'a Buffer,
    pub(super) run_scalars: &'a Buffer,
    pub(super) table: &'a Buffer,
}

impl Preparer<'_> {
    /// What the batch says of `axis`, or of the first: see [`Layout`].
    pub fn table(&self, axis: Option<u8>) -> View {
        let layout = self.values.program.table();
        let (first, words) = layout.region(axis.unwrap_or(0));
        View { buffer: self.table.clone(), offset: 4 * first as u64, bytes: 4 * words as u64 }
    }

    /// [`Self::table`] of all axes.
    pub fn tables(&self) -> View {
        View { buffer: self.table.clone(), offset: 0, bytes: 4 * self.values.program.table().words() as u64 }
    }

    /// Where workgroups that waited in vain are counted.
    pub fn stalls(&self) -> View {
        View { buffer: self.stalls.clone(), offset: 0, bytes: self.stalls.size() }
    }

    /// The prelude of `kernel`, which reads packed weights.
    pub fn weights(&self, kernel: &Kernel) -> String {
        let target = &self.values.program.target;
        kernel.prelude(target.precision.halves_weights(), target.matrix())
    }

    /// `kernel` over `views`, one for each of its storage bindings; `None` where an optional value is absent.
    pub fn launch(&mut self, kernel: &'static Kernel, views: &[Option<View>]) -> Result<Launch> {
        self.launch_with(kernel, "", None, &Constants::new(), views)
    }

    /// [`Self::launch`] with a prelude that declares bindings of its own, and with constants.
    pub fn launch_with(
        &mut self,
        kernel: &'static Kernel,
        prelude: &str,
        bindings: Option<Vec<Binding>>,
        constants: &Constants,
        views: &[Option<View>],
    ) -> Result<Launch> {
        let pipeline = self.pipelines.get(self.context, kernel, prelude, bindings, constants)?;
        let mut views = views.iter();
        let mut entries = Vec::with_capacity(pipeline.bindings.len());
        for (at, binding) in pipeline.bindings.iter().enumerate() {
            let whole = |buffer| wgpu::BufferBinding { buffer, offset: 0, size: None };
            let part = match binding {
                Binding::Params => wgpu::BufferBinding {
                    buffer: self.params,
                    offset: 0,
                    size: wgpu::BufferSize::new(pipeline.params.next_multiple_of(16)),
                },
                Binding::Run => whole(self.run_scalars),
                Binding::Absent => continue,
                Binding::Read | Binding::Write => match views.next() {
                    Some(Some(v)) => wgpu::BufferBinding {
                        buffer: &v.buffer,
                        offset: v.offset,
                        size: wgpu::BufferSize::new(self.padded(v)),
                    },
                    Some(None) => whole(&self.nothing[usize::from(*binding == Binding::Write)]),
                    None => return Err(Error::internal(format!("kernel {}: too few values", pipeline.label))),
                },
            };
            entries.push(wgpu::BindGroupEntry { binding: at as u32, resource: wgpu::BindingResource::Buffer(part) });
        }
        let bind_group = self.context.buffers.bind_group(&wgpu::BindGroupDescriptor {
            label: Some(pipeline.label),
            layout: &pipeline.layout,
            entries: &entries,
        });
        self.context.check().map_err(|e| e.within(pipeline.label))?;
        Ok(Launch { pipeline, bind_group })
    }

    /// Bytes of a view with room for whole vectors, where the buffer and the device's limit have it.
    fn padded(&self, view: &View) -> u64 {
        let padded = view.bytes.next_multiple_of(VECTOR).max(VECTOR);
        let room = (view.buffer.padded_size() - view.offset).min(self.values.program.target.limits.binding);
        if padded <= room { padded } else { view.bytes.max(4) }
    }
}

/// What a launcher needs to record a run.
pub(super) struct Run<'a> {
    pub values: &'a Values,
    pub batch: &'a Batch,
    /// Whether sums over rows are added to what the outputs hold.
    pub continues: bool,
}

impl Run<'_> {
    /// The rows of `value` in this run.
    pub fn rows(&self, value: usize) -> Result<usize> {
        match self.values.shape(value).rows() {
            Some(dim) => self.batch.size(dim),
            None => Ok(1),
        }
    }

    /// Where the lengths of the sequences on `axis` begin in its table.
    pub fn lengths(&self, axis: u8) -> u32 {
        self.values.program.table().lengths(axis) as u32
    }

    /// Where the place of each of the batch's rows on `axis` begins in its table.
    pub fn places(&self, axis: u8) -> u32 {
        self.values.program.table().places(axis) as u32
    }

    /// Where what the table says of each axis lies.
    pub fn layout(&self) -> Layout {
        self.values.program.table()
    }

    /// The time axis numbered `axis`, T, and where its first rows begin in its table.
    pub fn axis(&self, axis: Option<u8>) -> Result<(Option<&Axis>, u32, u32)> {
        let Some(a) = axis else { return Ok((None, 0, 0)) };
        let here = self.batch.axis(a)?;
        Ok((Some(here), here.steps() as u32, self.values.program.table().offsets() as u32))
    }

    /// The pieces that hold the first `rows` rows: number, first row, one past the last.
    pub fn pieces(
        &self,
        axis: Option<u8>,
        rows: usize,
    ) -> impl DoubleEndedIterator<Item = (usize, usize, usize)> + use<> {
        let piece = self.values.piece_rows(axis).min(rows.max(1));
        (0..rows.div_ceil(piece)).map(move |p| (p, p * piece, ((p + 1) * piece).min(rows)))
    }
}
